"""`labline repro` leaves what `dvc repro` leaves, byte for byte: workspace, records, cache and run cache."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sides import INPUTS, OURS, THEIRS, Step, call, make_repository, remove, repro, run, snapshot, write

CHAIN = """stages:
  first: {cmd: cat data > first.txt, deps: [data], outs: [first.txt]}
  second: {cmd: cat first.txt > second.txt, deps: [first.txt], outs: [second.txt]}
  third: {cmd: cat second.txt > third.txt, deps: [second.txt], outs: [third.txt]}
"""
# The later stages end first, so that nothing but the runner puts them in order.
DIAMOND = """stages:
  top: {cmd: "mkdir -p top; cp data top/a; cp data top/b", deps: [data], outs: [top]}
  slow: {cmd: sleep 0.8; cat top/a > slow.txt, deps: [top/a], outs: [slow.txt]}
  medium: {cmd: sleep 0.4; cat top/b > medium.txt, deps: [top], params: [rate], outs: [medium.txt]}
  quick: {cmd: cat top/b > quick.txt, deps: [top/b], outs: [quick.txt]}
  bottom: {cmd: cat slow.txt medium.txt quick.txt > bottom.txt, deps: [quick.txt, medium.txt, slow.txt], outs: [bottom.txt]}
"""

Compare = Callable[..., dict[str, bytes]]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """A function that takes the same steps with DVC and with Labline, compares what each leaves, and returns what they left at the end."""

    def one_side(name: str, stages: str, inputs: dict[str, str], steps: tuple[Step, ...]) -> list[dict[str, bytes]]:
        folder, shots = make_repository(tmp_path / name, stages, inputs), []
        for step in steps:
            step(folder)
            shots.append(snapshot(folder))
        return shots

    def both(stages: str, *steps: Step, inputs: dict[str, str] = INPUTS) -> dict[str, bytes]:
        with ThreadPoolExecutor(2) as pool:
            theirs, ours = pool.map(lambda name: one_side(name, stages, inputs, steps), ["theirs", "ours"])
        for number, (wanted, found) in enumerate(zip(theirs, ours, strict=True)):
            for name in sorted(wanted.keys() | found.keys()):
                assert found.get(name) == wanted.get(name), f"after step {number}: {name}"
        return ours[-1]

    return both


def test_chain(compare: Compare) -> None:
    compare(CHAIN, repro(), repro(), write(data="2\n"), repro(), write(data="1\n"), repro())


def test_diamond(compare: Compare) -> None:
    left = compare(DIAMOND, repro(), write(params__yaml="rate: 2\n"), repro(), remove("quick.txt", "top"), repro(), repro("-f"))
    assert left[".gitignore"].decode().split() == ["/top", "/slow.txt", "/medium.txt", "/quick.txt", "/bottom.txt"]


def test_matrix_and_foreach(compare: Compare) -> None:
    stages = """stages:
  train:
    matrix: {name: "${names}", size: [1, 2]}
    cmd: sleep 0.${item.size}; echo ${item.name} ${item.size} ${rate} > ${key}.txt
    deps: [data]
    params: [rate]
    outs: ["${key}.txt"]
  copy:
    foreach: {x: 3, y: 1}
    do:
      cmd: sleep 0.${item}; cp data ${key}.copy
      deps: [data]
      outs: ["${key}.copy"]
  all: {cmd: cat *.txt *.copy > all, deps: [a-1.txt, a-2.txt, b-1.txt, b-2.txt, c-1.txt, c-2.txt, x.copy, y.copy], outs: [all]}
"""
    compare(stages, repro(), write(params__yaml="rate: 1\nnames: [c, d]\n"), repro("train", "copy@x"), repro("train@c-1", "-f", "-s"))


def test_frozen(compare: Compare) -> None:
    frozen = DIAMOND.replace("medium: {", "medium: {frozen: true, ")
    compare(DIAMOND, repro(), write(dvc__yaml=frozen, data="2\n"), repro(), remove("medium.txt"), repro(code=None))


def test_always_changed_and_callback(compare: Compare) -> None:
    stages = DIAMOND.replace("slow: {", "slow: {always_changed: true, ") + "  tell: {cmd: echo told >> told}\n"
    left = compare(stages, repro(), repro(), repro("slow"))
    assert left["told"] == b"told\ntold\n"


def test_kinds_of_outputs(compare: Compare) -> None:
    stages = """stages:
  metrics: {cmd: "sleep 0.3; echo '{\\"a\\": 1}' > metrics.json", deps: [data], metrics: [metrics.json: {cache: false}]}
  plots: {cmd: "sleep 0.2; echo '[{\\"a\\": 1}]' > plots.json", deps: [data], plots: [plots.json: {x: a, title: A}]}
  log: {cmd: cat data >> log, deps: [data], outs: [log: {persist: true}]}
  code: {cmd: mkdir -p code; cp data code/a.py, deps: [data], outs: [code: {cache: false, persist: true}]}
  kept: {cmd: cp data kept, deps: [data, code/a.py], outs: [kept: {push: false, desc: what is kept}]}
  folder: {cmd: "mkdir folder; cp data folder/a b; cp data folder/c", deps: [data], outs: [folder]}
  linked: {cmd: mkdir -p sub/deep; cp data sub/deep/file, deps: [data], outs: [sub/deep/file]}
"""
    stages = stages.replace("cp data folder/a b", "cp data 'folder/a b'")
    left = compare(stages, repro(), write(data="2\n"), repro(), remove("metrics.json", "plots.json", "code", "folder"), repro())
    assert left["log"] == b"1\n2\n" and left["sub/deep/.gitignore"] == b"/file\n"


def test_partial_run_cache(compare: Compare) -> None:
    back = [remove("*.txt", "top", "dvc.lock"), repro(), remove(".dvc/cache/files", "*.txt", "top", "dvc.lock"), repro()]
    compare(DIAMOND, repro(), write(data="2\n"), repro(), *back, write(data="1\n"), repro(), repro("--no-run-cache", "-f", "bottom"))


def test_failure(compare: Compare) -> None:
    stages = DIAMOND.replace("cat slow.txt", "test $(cat data) -gt 1 && cat slow.txt")
    compare(stages, repro(code=None), write(data="2\n"), repro())


def test_failure_keeps_going(compare: Compare) -> None:
    stages = DIAMOND.replace("cat top/b > medium.txt", "test $(cat data) -gt 1 && cat top/b > medium.txt")
    compare(stages, repro("-k", code=None), repro("-k", "bottom", code=None), write(data="2\n"), repro("--keep-going"))


def test_failure_ignored(compare: Compare) -> None:
    stages = DIAMOND.replace("cat top/b > medium.txt", "cat top/b > medium.txt; test $(cat data) -gt 1")
    compare(stages, repro("--ignore-errors"), write(data="2\n"), repro())


def test_missing_dependency(compare: Compare) -> None:
    compare(CHAIN, repro(code=None), write(data="1\n"), repro(), inputs={})


def test_data_and_imports(compare: Compare, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        run(words, source)
    (source / "table").write_text("x\n")
    for words in (["dvc", "add", "-q", "table"], ["git", "add", "."], ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1"]):
        run(words, source)
    stages = """stages:
  left: {cmd: cat added imported > left, deps: [added, imported], outs: [left]}
  right: {cmd: cat url > right, deps: [url], outs: [right]}
"""
    compare(
        stages,
        write(added="1\n"),
        call("dvc", "add", "added"),
        call("dvc", "import", str(source), "table", "-o", "imported"),
        call("dvc", "import-url", str(source / "table"), "url"),
        repro(),
        write(added="2\n"),
        repro(),
        remove("imported", "url"),
        repro(code=None),
        call("dvc", "unfreeze", "imported.dvc", "url.dvc"),
        repro("-P"),
        repro("imported.dvc", "url.dvc", "-f"),
        repro("-R", "."),
    )


def test_folders_and_options(compare: Compare) -> None:
    sub = "stages:\n  one: {cmd: cat ../data > one, deps: [../data], outs: [one]}\n  two: {cmd: cat one > two, deps: [one], wdir: ., outs: [two]}\n"
    compare(
        DIAMOND,
        write(**{"sub/dvc__yaml": sub}),
        repro("-P"),
        write(data="2\n"),
        repro("--downstream", "medium"),
        repro("sub/dvc.yaml:two"),
        repro("slow", "-p"),
        write(data="3\n"),
        repro("--force-downstream", "bottom"),
        repro("--glob", "*o*", "-f"),
        repro("--no-commit", "-f", "quick"),
        remove(".dvc/cache"),
        repro("--allow-missing"),
    )


def test_several_commands_and_parameters(compare: Compare) -> None:
    stages = """vars:
  - other.yaml
  - {suffix: txt}
stages:
  list:
    cmd:
      - echo ${rate} > list.${suffix}
      - test ${rate} -lt 3
      - cat data >> list.${suffix}
    deps: [data]
    params: [rate, {other.yaml: [deep.value]}, {whole.json: null}]
    outs: ["list.${suffix}"]
  lines:
    cmd: |
      sleep 0.3
      echo ${deep.value} > lines.txt
      env | grep ^DVC_STAGE= >> lines.txt
    params: [names]
    outs: [lines.txt]
  both: {cmd: cat list.txt lines.txt > both, deps: [list.txt, lines.txt], outs: [both]}
"""
    inputs = INPUTS | {"other.yaml": "deep: {value: x, unused: 1}\n", "whole.json": '{"a": 1}\n'}
    left = compare(
        stages,
        repro(),
        write(other__yaml="deep: {value: x, unused: 2}\n"),
        repro(),
        write(other__yaml="deep: {value: y}\n", whole__json='{"a": 2}\n'),
        repro(),
        write(params__yaml="rate: 3\nnames: [b]\n"),
        repro("-k", code=None),
        write(params__yaml="rate: 2\nnames: [b]\n"),
        repro(),
        write(params__yaml="rate: 2\n"),
        repro(code=None),
        inputs=inputs,
    )
    assert left["both"] == b"2\n1\ny\nDVC_STAGE=lines\n"


def test_autostage(compare: Compare) -> None:
    """What DVC stages in git, where it is told to."""
    broken = DIAMOND.replace("cat slow.txt", "false && cat slow.txt")
    left = compare(broken, call("dvc", "config", "core.autostage", "true"), repro(code=None), write(dvc__yaml=DIAMOND), repro())
    assert b"A  dvc.lock" in left["git's view"] and b"A  .gitignore" in left["git's view"]


def test_dry(tmp_path: Path) -> None:
    said = []
    for program in (THEIRS, OURS):
        folder = make_repository(tmp_path / program[0], CHAIN, INPUTS)
        run(THEIRS, folder)
        write(data="2\n")(folder)
        before = snapshot(folder)
        lines = run([*program, "--dry"], folder).splitlines()
        said.append([line for line in lines if line and "push" not in line])
        assert snapshot(folder) == before
    assert said[0] == said[1] and "> cat data > first.txt" in said[0]
