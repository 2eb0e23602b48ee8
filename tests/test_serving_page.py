"""The page and the OpenAPI document: complete, well-formed, and calling nobody."""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving_standin import ROW, Service, contract_of, served
from workspaces import ROOT

from labline.data.contract import Contract
from labline.serving.documents import document
from labline.serving.interface import Interface
from labline.serving.page import page, policy
from labline.serving.settings import Settings

VOID = {"meta", "link", "input", "br", "hr", "img"}
RIDES = Contract.load(ROOT / "contract.yaml")
CASES = {
    "stand-in": Interface("eta", contract_of(), ("minutes", "minutes_low", "minutes_high"), [ROW]),
    "rides": Interface("eta", RIDES, ("minutes", "minutes_low", "minutes_high"), []),
    "plain": Interface("eta", contract_of(), ("minutes",), []),
}


class Page(HTMLParser):
    """The elements of a page; every one that is opened must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest) -> Interface:
    return CASES[request.param]


@pytest.mark.parametrize("secured", [False, True])
def test_every_column_has_a_labelled_field(model: Interface, secured: bool) -> None:
    found = Page(page(model, "eta@v1", ["eta", "fare"], secured))
    identities = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(identities)) == len(identities)
    labels = {attributes["for"] for attributes in found.all("label")}
    fields = {attributes["name"]: attributes for attributes in found.all("input", "select") if attributes.get("name")}
    assert set(fields) == {*model.contract.row, model.contract.id}
    for name, attributes in fields.items():
        assert attributes["id"] in labels, name
        assert set((attributes["aria-describedby"] or "").split()) <= set(identities)
        assert attributes.get("aria-required") == ("true" if model.needed(name) else None)
    assert ("key" in labels) == secured


def test_the_page_calls_nobody_else(model: Interface) -> None:
    html = page(model, "eta@v1")
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]|@import|\burl\(|<iframe|<object|srcset", html)
    links = [attributes[name] or "" for attributes in Page(html).all("a", "link", "script", "img") for name in ("href", "src") if name in attributes]
    assert all(link.startswith(("/", "data:")) for link in links)
    assert not re.search(r'\son[a-z]+="|\sstyle="', html)


def test_the_policy_allows_this_program_and_this_style_alone() -> None:
    found = Page(page(CASES["stand-in"], "eta@v1"))
    (style,) = found.texts["style"]
    program = found.texts["script"][-1]
    for text in (style, program):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy()
    assert "default-src 'none'" in policy() and "unsafe" not in policy()


def test_units_ranges_and_meanings_are_shown() -> None:
    html = page(CASES["stand-in"], "eta@v1")
    assert "planned road distance" in html and "0 to 150" in html and "<b>km</b>" in html and "Looked up when left empty" in html
    assert re.search(r'name="distance_km"[^>]* min="0" max="150"', html) and '<option value="van">' in html


def test_what_a_contract_says_stays_text() -> None:
    columns = contract_of().tables["trips"].columns
    rogue = msgspec.structs.replace(columns["zone"], meaning='"><script>alert(1)</script>', unit="<b>")
    table = msgspec.structs.replace(contract_of().tables["trips"], columns={**columns, "zone": rogue})
    contract = msgspec.structs.replace(contract_of(), tables={"trips": table})
    html = page(Interface("eta", contract, ("minutes",), [ROW | {"zone": "</script><b>"}]), "eta@v1")
    assert "<script>alert" not in html and html.count("</script>") == 2
    Page(html)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to read the program with")
def test_the_program_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "page.js").write_text(Page(page(CASES["stand-in"], "eta@v1")).texts["script"][-1])
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True, capture_output=True)


# The document


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [item for name, part in value.items() for item in ([part] if name == "$ref" else references(part))]
    return [item for part in value for item in references(part)] if isinstance(value, list) else []


def test_the_document_has_every_column_with_unit_range_and_meaning(model: Interface) -> None:
    found = document([model])["components"]["schemas"]["eta.row"]
    assert set(found["properties"]) == {*model.contract.row, model.contract.id} and found["additionalProperties"] is False
    assert found["required"] == [name for name in model.sent if model.needed(name)]
    for name, column in model.contract.row.items():
        schema = found["properties"][name]
        assert column.meaning in schema["description"] and schema.get("x-unit") == column.unit
        assert (schema.get("minimum"), schema.get("maximum")) == (column.min, column.max)
        assert [value for value in schema.get("enum", []) if value is not None] == (column.categories or [])


def test_references_and_operations_are_whole(model: Interface) -> None:
    found = document([model])
    assert {item.removeprefix("#/components/schemas/") for item in references(found)} <= set(found["components"]["schemas"])
    operations = [item for path in found["paths"].values() for method, item in path.items() if method != "parameters"]
    assert len({item["operationId"] for item in operations}) == len(operations)
    assert all("200" in item["responses"] for item in operations)


def test_two_models_are_described_apart() -> None:
    fare = Interface("fare", contract_of("fare"), ("minutes",), [])
    found = document([CASES["stand-in"], fare])
    assert {"/models/eta/predict", "/models/fare/predict", "/v1/models/fare:predict"} <= set(found["paths"])
    eta, fares = (found["components"]["schemas"][f"{name}.answer"]["properties"] for name in ("eta", "fare"))
    assert "interval" in eta and "interval" not in fares


# In a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"


@contextlib.contextmanager
def browser(folder: Path, url: str) -> Iterator[Callable[[str], Any]]:
    """A page in Chromium, as a function that evaluates JavaScript there."""
    websocket = pytest.importorskip("websocket")
    command = [str(CHROMIUM), *FLAGS.split(), "--remote-debugging-port=0", f"--user-data-dir={folder}", url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until, pages = time.monotonic() + 90, []
        while not pages and time.monotonic() < until:
            time.sleep(0.05)
            with contextlib.suppress(OSError, IndexError):
                port = (folder / "DevToolsActivePort").read_text().split()[0]
                found = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json").read())
                pages = [page for page in found if page["type"] == "page" and page["url"].startswith(url)]
        numbers = itertools.count(1)
        with contextlib.closing(websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=90, suppress_origin=True)) as connection:

            def evaluate(expression: str) -> Any:
                number, parameters = next(numbers), {"expression": expression, "awaitPromise": True, "returnByValue": True}
                connection.send(json.dumps({"id": number, "method": "Runtime.evaluate", "params": parameters}))
                while (answer := json.loads(connection.recv())).get("id") != number:
                    continue
                return answer.get("result", {}).get("result", {}).get("value")  # nothing while the page is being loaded

            yield evaluate
    finally:
        process.terminate()
        process.wait(90)


def becomes(evaluate: Callable[[str], Any], expression: str, wanted: Any) -> None:
    """Wait until an expression has a value."""
    until = time.monotonic() + 90
    while (value := evaluate(expression)) != wanted:
        assert time.monotonic() < until, (expression, value)
        time.sleep(0.02)


@pytest.mark.skipif(CHROMIUM is None or sys.platform != "linux", reason="needs Chromium on Linux")
def test_somebody_tries_it_in_a_browser(tmp_path: Path) -> None:
    service = Service(Settings(keys=str(tmp_path / "keys.json")))
    text = "document.getElementById({!r}).textContent".format
    with served(service) as (_, port), browser(tmp_path / "profile", f"http://127.0.0.1:{port}/") as evaluate:
        becomes(evaluate, "(document.getElementById('curl')?.textContent ?? '') !== ''", True)
        assert evaluate(text("curl")).startswith(f"curl http://127.0.0.1:{port}/predict") and '"zone": "north"' in evaluate(text("curl"))
        evaluate("document.getElementById('ask').click()")
        becomes(evaluate, text("value"), "11")
        assert evaluate(text("low")) == "8.25" and "eta@v1" in evaluate(text("facts")) and "1 min old" in evaluate(text("facts"))
        type_in = "(() => { const field = document.getElementById('field-distance_km'); field.value = '-4';"
        evaluate(type_in + "field.dispatchEvent(new Event('input', { bubbles: true })) })()")
        assert '"distance_km": -4' in evaluate(text("curl"))
        evaluate("document.getElementById('ask').click()")
        becomes(evaluate, text("error-distance_km"), "-4 is below 0")
        assert evaluate("document.activeElement.id") == "field-distance_km" and evaluate("document.activeElement.ariaInvalid") == "true"
        ran = "new Promise((done) => { const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
        assert evaluate(ran + "document.body.append(one); setTimeout(() => done(window.ran ?? 'refused'), 50) })") == "refused"
