"""Retraining from the log to the next release, with everything that can go wrong on the way: each time what is live stays, and the next start goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import ibis
import msgspec
import numpy as np
import pandas as pd
import psutil
import pytest
from processes import PROCESSES, preload
from servingload import free_port
from sides import beside, exit_code, started
from workspaces import ROOT, run

from labline.data.cleaning import REASONS, clean
from labline.data.contract import Contract
from labline.data.incoming import RawTables
from labline.data.quality import validate
from labline.data.tables import connect, scan
from labline.errors import DataError, LablineError, ParameterError, WorkspaceError
from labline.operations.git import git
from labline.operations.registry import Registry
from labline.operations.retrain.asking import dry_run
from labline.operations.retrain.delivering import STEPS
from labline.operations.retrain.example import answer_twice
from labline.operations.retrain.gathering import gather
from labline.operations.retrain.probation import read_probation, write_probation
from labline.operations.retrain.raw import as_raw, raw_kinds, write_raw
from labline.operations.retrain.round import Round
from labline.operations.retrain.running import retrain
from labline.operations.retrain.state import FOLDER, State, alone, history, read_state

preload("labline.operations.retrain.running", "labline.operations.releasing", "labline.models.evaluation", "tensorflow")


def steps(workspace: Path, name: str, told: Path) -> None:
    """Do the steps of a retraining. The one that is named kills the process when its work is done and nobody has written that down yet."""
    os.chdir(workspace)
    if name in STEPS:
        done = STEPS[name]

        def step(round: Round) -> State:
            done(round)
            os.kill(os.getpid(), signal.SIGKILL)
            return round.state

        STEPS[name] = step
    try:
        told.write_text(retrain(workspace, because="a test").ending)
    except LablineError as problem:
        told.write_text(str(problem))
        sys.exit(1)


@pytest.fixture
def workspace(slower_roads: Path, tmp_path: Path) -> Path:
    """A copy of the workspace for one test."""
    return shutil.copytree(slower_roads, tmp_path / "work", symlinks=True)


def start(workspace: Path, name: str = "") -> tuple[BaseProcess, Path]:
    told = workspace / "runs" / "told.txt"
    told.unlink(missing_ok=True)
    process = PROCESSES.Process(target=steps, args=(workspace, name, told))
    process.start()
    return process, told


def child(workspace: Path, name: str = "") -> tuple[int, str]:
    """The exit code of a process that does the steps, and how the retraining ended, or the error."""
    process, told = start(workspace, name)
    process.join(300)
    return int(process.exitcode or 0), told.read_text() if told.is_file() else ""


def labline(workspace: Path, *words: str, code: int = 0, **environment: str) -> str:
    """What the program says to a command that ends with an exit code; a process that is forked runs it."""
    ended = exit_code(started(("labline", *words), workspace, **environment), 300)
    said = beside(workspace, "output").read_text()
    assert ended == code, f"labline {' '.join(words)} ended with {ended}\n{said}"
    return said


def live(workspace: Path) -> str:
    found = Registry.read(workspace).live("eta", "prod")
    return found.label if found else ""


def set_rule(workspace: Path, old: str, new: str) -> None:
    """Change the policy, and commit the change."""
    path = workspace / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    git(workspace, "commit", "--quiet", "--all", "--message", "A change of the policy")


def there(folder: Path) -> list[psutil.Process]:
    """The processes that run in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def test_a_retraining_that_is_killed_at_each_step_leaves_what_is_live_and_goes_on(workspace: Path) -> None:
    head, params = git(workspace, "rev-parse", "HEAD"), (workspace / "params.yaml").read_text()
    for name in STEPS:
        if name == "reproduce":
            kill_while_the_line_runs(workspace)
        if name == "release":
            the_remote_cannot_be_reached(workspace)
        code, told = child(workspace, name)
        assert code == -signal.SIGKILL, told
        state = read_state(workspace / FOLDER)
        assert (state.step, state.ending) == (name, ""), f"nobody has written down that `{name}` is done"
        before_promotion = list(STEPS).index(name) < list(STEPS).index("promote")
        assert live(workspace) == ("eta@v1" if before_promotion else "eta@v2")
        if name not in ("merge", "close"):
            assert (git(workspace, "rev-parse", "HEAD"), git(workspace, "status", "--porcelain")) == (head, "")
            assert (workspace / "params.yaml").read_text() == params and not (workspace / "data" / "served").exists()
    assert child(workspace) == (0, "promoted")
    finished(workspace)


def kill_while_the_line_runs(workspace: Path) -> None:
    """Kill the retraining, and nothing else, while a stage is at work: what it started ends too, and the lock is free."""
    process, _ = start(workspace)
    state = read_state(workspace / FOLDER)
    place, log = workspace / FOLDER / state.run / "workspace", workspace / FOLDER / state.run / "log.txt"
    wait_for(lambda: log.is_file() and "package: runs" in log.read_text())
    wait_for(lambda: any("learn(" in " ".join(process.cmdline()) for process in there(place)))
    process.kill()
    process.join()
    wait_for(lambda: there(place) == [])
    assert read_state(workspace / FOLDER).step == "reproduce" and live(workspace) == "eta@v1"


def the_remote_cannot_be_reached(workspace: Path) -> None:
    """The release is stopped, said, and made at the next start."""
    place = workspace / FOLDER / read_state(workspace / FOLDER).run / "workspace"
    (place / ".dvc" / "remote").rename(place / ".dvc" / "elsewhere")
    (place / ".dvc" / "remote").write_text("no folder")
    code, told = child(workspace)
    (place / ".dvc" / "remote").unlink()
    (place / ".dvc" / "elsewhere").rename(place / ".dvc" / "remote")
    assert code == 1 and "the DVC remote `embedded` cannot be reached or written" in told
    state = read_state(workspace / FOLDER)
    assert (state.step, live(workspace), list(Registry.read(workspace).releases)) == ("release", "eta@v1", ["eta@v1"]) and "cannot be reached" in state.problem


def finished(workspace: Path) -> None:
    """All that a retraining leaves: one release, one data version, one decision, and nothing that is half done."""
    registry, state = Registry.read(workspace), read_state(workspace / FOLDER)
    assert list(registry.releases) == ["eta@v1", "eta@v2"] and live(workspace) == "eta@v2" and (state.ending, state.attempts) == ("promoted", 0)
    subjects = git(workspace, "log", "--format=%s").splitlines()
    assert [subject.partition(" ")[0] for subject in subjects] == ["Artifacts", "Decision", "A", "Data", "Artifacts", "A", "A"], "each commit was made once"
    assert git(workspace, "branch", "--format=%(refname:short)") == "main" and len(git(workspace, "worktree", "list").splitlines()) == 1
    assert git(workspace, "status", "--porcelain") == "" and (workspace / "data" / "trips" / "2025-03-served.parquet").is_file()
    facts = registry.find("eta@v2").facts["retraining"]
    assert facts["outcome"] == "promote" and facts["relative"]["high"] < 0 and facts["because"] == "a test" and set(facts["checks"].values()) == {"passes"}
    assert (workspace / "retrainings" / f"{state.run}.md").is_file() and history(workspace / FOLDER)[-1]["ending"] == "promoted"
    assert run("dvc", "status", cwd=workspace).stdout.strip() == "Data and pipelines are up to date.", "the head reproduces what is live"
    assert read_probation(workspace).before == "eta@v1"


@contextmanager
def serving(workspace: Path) -> Iterator[str]:
    """The service of a workspace, which follows the stage `prod`."""
    port = free_port()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["labline", "serve", "--stage", "prod", "--port", str(port), "--fetch-seconds", "0"]
    with open(workspace / "service.txt", "wb") as log:
        process = subprocess.Popen(command, cwd=workspace, stdout=log, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (workspace / "service.txt").read_text()[-3000:]
        try:
            return httpx.get(f"{url}/releases").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def labels(url: str) -> dict[str, list[str]]:
    return {one["release"]: one["labels"] for model in httpx.get(f"{url}/releases").json()["models"] for one in model["releases"]}


def test_a_person_is_asked_the_service_takes_the_release_and_gives_it_back(workspace: Path) -> None:
    set_rule(workspace, "decide: auto", "decide: ask")
    set_rule(workspace, "least_rows: 100", "least_rows: 100\n  watch_rows: 100")
    (workspace / ".gitignore").write_text((workspace / ".gitignore").read_text() + "/service.txt\n")
    git(workspace, "commit", "--quiet", "--all", "--message", "What is not kept")
    asked = labline(workspace, "retrain", "--because", "March is slow", code=3)
    assert "It passes, and the policy lets a person decide" in asked and live(workspace) == "eta@v1"
    state = read_state(workspace / FOLDER)
    assert "a person must say" in (workspace / FOLDER / state.run / "decision.md").read_text() and git(workspace, "status", "--porcelain") == ""
    with pytest.raises(WorkspaceError, match="waits for a person's answer"):
        retrain(workspace)
    labline(workspace, "retrain", "--if-due", code=3, LABLINE_ALERT_COMMAND=f"tee {workspace}/runs/told.json")
    assert "waits for a person's answer" in json.loads((workspace / "runs" / "told.json").read_text())["text"]
    with serving(workspace) as url:
        assert labels(url) == {"eta@v1": ["stable"]}
        accepted = labline(workspace, "retrain", "--yes", "--url", url)
        assert "eta@v2 is live in place of eta@v1" in accepted and "eta@v1 answers unseen beside it for 168 h" in accepted, accepted
        assert labels(url)["eta@v2"] == ["stable"] and "shadow" in labels(url)["eta@v1"]
        row = {"requested_at": "2025-04-01T08:00:00", "zone": "north", "vehicle": "car", "distance_km": 6.0, "passengers": 1, "speed_kmh": 36.0}
        answer = httpx.post(f"{url}/v1/models/eta:predict", json={"instances": [row]}).json()
        assert answer["predictions"][0]["minutes"] == pytest.approx(3 + 2.6 * 6 * 30 / 36, rel=0.1)
        taken_back_when_it_is_worse(workspace, url)


def taken_back_when_it_is_worse(workspace: Path, url: str) -> None:
    """The log says that the new release errs more than its shadow: the stage goes back, the service follows, and a person is told why nothing is begun."""
    watched = read_probation(workspace)
    earlier = {"since": watched.since - 200 * 3600, "until": watched.until - 150 * 3600, "digest": "b" * 64, "before_digest": "a" * 64}
    write_probation(workspace, msgspec.structs.replace(watched, **earlier))
    answer_twice(f"sqlite:///{workspace}/runs/serving/predictions.db", watched.since - 199 * 3600, hours=48, new=3.0, old=1.0)
    looked = labline(workspace, "retrain", "--if-due", "--url", url, code=3)
    assert "That is worse beyond doubt, so eta@v1 is live again" in looked and "was taken back. A person should look why" in looked
    assert "The shadow has ended" in looked and live(workspace) == "eta@v1"
    wait_for(lambda: labels(url).get("eta@v1") == ["stable"])
    assert "beyond doubt" in Registry.read(workspace).changes("eta", "prod")[-1].note.body


def test_what_cannot_begin_is_refused_and_said(workspace: Path) -> None:
    (workspace / "contract.yaml").write_text((workspace / "contract.yaml").read_text() + "# a note\n")
    (workspace / "nbs").mkdir()
    (workspace / "nbs" / "new.ipynb").write_text("{}")
    refused = labline(workspace, "retrain", code=1)
    assert "these files differ from it: `contract.yaml`, `nbs/new.ipynb`. Commit them" in refused
    git(workspace, "restore", "contract.yaml")
    shutil.rmtree(workspace / "nbs")
    with alone(workspace / FOLDER), pytest.raises(WorkspaceError, match="a retraining is under way"):
        retrain(workspace)
    with pytest.raises(ParameterError, match="no retraining waits for an answer"):
        retrain(workspace, accept=True)
    with pytest.raises(DataError, match="there is no such folder of exports"):
        retrain(workspace, exports=str(workspace / "absent"))
    assert read_state(workspace / FOLDER).step == "gather" and live(workspace) == "eta@v1"
    assert dry_run(workspace, exports=str(workspace / "data"))[-1].endswith("would begin anew.")
    shutil.rmtree(workspace / FOLDER)
    git(workspace, "worktree", "prune")
    dry = labline(workspace, "retrain", "--dry")
    assert "nobody would begin: no reason: no alarm" in dry and "1,120 new rows" in dry and "held against eta@v1" in dry and "go live" in dry
    assert "Not now: no reason: no alarm." in labline(workspace, "retrain", "--if-due").splitlines()
    assert git(workspace, "status", "--porcelain") == "" and not (workspace / FOLDER / "state.json").exists()


@pytest.fixture
def small_disk(slower_roads: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the workspace on a file system with little room; skips where none can be mounted."""
    folder, size = tmp_path / "small disk", sum(path.stat().st_size for path in slower_roads.rglob("*") if path.is_file())
    folder.mkdir()
    room = f"size={(2 * size + 3_000_000) // 1024}k"
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(folder)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("a small file system can only be mounted by root")
    yield shutil.copytree(slower_roads, folder / "work", symlinks=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_a_retraining_which_goes_on_when_there_is_room(small_disk: Path) -> None:
    assert child(small_disk, "open")[0] == -signal.SIGKILL
    ballast = small_disk / "runs" / "ballast"
    ballast.write_bytes(b"x" * max(0, shutil.disk_usage(small_disk).free - 60_000))
    code, told = child(small_disk)
    assert code == 1 and "the disk is full" in told, told
    assert live(small_disk) == "eta@v1" and git(small_disk, "status", "--porcelain") == "" and not list((small_disk / FOLDER).glob(".*"))
    ballast.unlink()
    assert child(small_disk, "pin")[0] == -signal.SIGKILL
    state = read_state(small_disk / FOLDER)
    assert state.step == "pin" and state.facts["gathered"]["tables"]["trips"]["new"] == 1120
    assert (small_disk / FOLDER / state.run / "workspace" / "data" / "trips" / "2025-03-served.parquet").is_file()


def test_a_month_that_came_to_the_service_is_the_month_that_was_exported(tmp_path: Path) -> None:
    """The rides: texts for times, either unit, a table by month and one that is a file; what the service got gives the rows that the export gives."""
    contract, data = Contract.load(ROOT / "contract.yaml"), tmp_path / "data"
    run("labline", "simulate", str(data), "--legs", "3000", "--months", "3", cwd=tmp_path)
    validate(contract, data, tmp_path / "whole")
    exported = {name: pd.read_parquet(tmp_path / "whole" / "tables" / f"{name}.parquet") for name in ("legs", "weather")}
    march = set(pd.read_parquet(data / "legs" / "2025-03.parquet")["leg_id"])  # and some late legs of February
    (data / "legs" / "2025-03.parquet").unlink()
    weather = pd.read_parquet(data / "weather.parquet")
    weather[weather["observed_at"] < "2025-03-01"].to_parquet(data / "weather.parquet", index=False)
    came = RawTables(contract, tmp_path / "came", tmp_path / "nowhere")
    lacking = {"legs": exported["legs"]["leg_id"].isin(march), "weather": exported["weather"]["observed_at"] >= "2025-03-01"}
    for name, moment in (("legs", "requested_at"), ("weather", "observed_at")):
        rows = exported[name][lacking[name]].astype(object).to_dict("records")
        plain = [{column: None if pd.isna(value) else value for column, value in row.items()} for row in rows]
        assert came.add(name, [row | {moment: row[moment].isoformat(timespec="seconds")} for row in plain]).errors == []
    gathered = gather(contract, data, tmp_path / "report", came=came)
    assert gathered.changed == ("legs/2025-02-served.parquet", "legs/2025-03-served.parquet", "served/tables/weather.parquet", "weather.parquet")
    for name in ("legs", "weather"):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "report" / "tables" / f"{name}.parquet"), exported[name])


def test_rows_of_any_contract_are_read_back_as_they_were(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    for place in range(20):
        contract, exported, rows = some_table(draw)
        table = contract.tables["t"]
        folder = tmp_path / str(place)
        (folder / "t").mkdir(parents=True)
        exported.to_parquet(folder / "t" / "2025-01.parquet", index=False)
        with connect(threads=1) as connection:
            kinds = raw_kinds([folder / "t" / "2025-01.parquet"])
            write_raw(connection, as_raw(ibis.memtable(rows), table, kinds), folder / "t" / "2025-02.parquet", ["raw_id"])
            read = scan(connection, table, folder, "t", allow_empty_months=True)
            read = connection.to_pandas(clean(read.filter(read["_file"] == "t/2025-02.parquet"), table).order_by("key"))
        assert read[REASONS].eq("").all(), read[REASONS].unique()
        for name in table.columns:
            known = rows[name].notna()
            assert read[name].isna().tolist() == (~known).tolist()
            found, wanted = read[name][known], rows[name][known]
            assert np.allclose(found, wanted, rtol=1e-12) if name == "far" else (found == wanted).all()


def some_table(draw: np.random.Generator) -> tuple[Contract, pd.DataFrame, pd.DataFrame]:
    """A contract, one row as it was exported, and rows in the contract's names: types, units and formats by chance."""
    formats, as_text = ["%d/%m/%Y %H:%M:%S", "%Y-%m-%dT%H:%M:%S"][: draw.integers(1, 3)], bool(draw.integers(2))
    units = dict(zip(draw.permutation(["km", "mi", "yd"]).tolist(), draw.permutation([1.0, 1.609344, 0.0009144]).tolist(), strict=True))
    numeric_zone = bool(draw.integers(2))
    text = f"""
name: some
model: some
main: t
tables:
  t:
    path: t/*.parquet
    columns:
      key: {{type: text, role: id, source: raw_id}}
      at: {{type: timestamp, role: time, formats: {json.dumps(formats)}}}
      far: {{type: number, source: raw_far, unit_column: raw_unit, units: {json.dumps(units)}, nullable: true}}
      zone: {{type: category, nullable: true}}
      many: {{type: integer, nullable: true}}
      open: {{type: boolean, nullable: true}}
      y: {{type: number, role: target}}
"""
    moment = pd.Timestamp("2025-01-05 07:08:09")
    exported = pd.DataFrame({
        "raw_id": ["0"], "at": [moment.strftime(formats[0]) if as_text else moment], "raw_far": [1.5], "raw_unit": [next(iter(units))],
        "zone": [3 if numeric_zone else "three"], "many": [2.0 if draw.integers(2) else 2], "open": [1 if draw.integers(2) else True], "y": [4], "more": ["x"],
    })  # fmt: skip
    count = 30
    lacking = draw.random((4, count)) < 0.2
    zones = [str(number) if numeric_zone else f"zone {number}" for number in draw.integers(1, 9, count)]
    rows = pd.DataFrame({
        "key": [f"{number:03d}" for number in range(1, count + 1)], "at": moment + pd.to_timedelta(draw.integers(1, 40 * 86_400, count), unit="s"),
        "far": np.where(lacking[0], np.nan, draw.gamma(2, 5, count)), "zone": [None if gone else zone for gone, zone in zip(lacking[1], zones, strict=True)],
        "many": pd.array([None if gone else int(value) for gone, value in zip(lacking[2], draw.integers(0, 9, count), strict=True)], "Int64"),
        "open": pd.array([None if gone else bool(value) for gone, value in zip(lacking[3], draw.integers(0, 2, count), strict=True)], "boolean"),
        "y": draw.integers(1, 90, count).astype(float),
    })  # fmt: skip
    return msgspec.yaml.decode(text, type=Contract), exported, rows
