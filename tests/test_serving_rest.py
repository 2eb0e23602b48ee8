"""TensorFlow Serving's REST API, as its clients know it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_standin import ROW, Service

from labline.serving.friendly import shortest
from labline.serving.http import Application
from labline.serving.settings import Settings

Ask = Callable[..., httpx.Response]
ADDRESSES = ["/v1/models/eta", "/v1/models/eta/versions/1", "/v1/models/eta/labels/stable"]
EXPECTED = {"minutes": 11.0, "minutes_high": 16.5, "minutes_low": 8.25}


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    application = Application(Service(Settings(keys=str(tmp_path / "keys.json"))))

    def send(method: str, path: str, **rest: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **rest)

        return asyncio.run(once())

    return send


@pytest.mark.parametrize("address", ADDRESSES)
def test_rows(ask: Ask, address: str) -> None:
    answer = ask("POST", f"{address}:predict", json={"signature_name": "serving_default", "instances": [ROW, ROW | {"distance_km": None}]})
    assert answer.json() == {"predictions": [EXPECTED, {"minutes": 13.0, "minutes_high": 19.5, "minutes_low": 9.75}]}


@pytest.mark.parametrize("address", ADDRESSES)
def test_columns(ask: Ask, address: str) -> None:
    answer = ask("POST", f"{address}:predict", json={"inputs": {name: [value, value] for name, value in ROW.items()}})
    assert answer.json() == {"outputs": {name: [value, value] for name, value in EXPECTED.items()}}


def test_values_in_lists_of_their_own(ask: Ask) -> None:
    answer = ask("POST", "/v1/models/eta:predict", json={"instances": [{name: [value] for name, value in ROW.items()}]})
    assert answer.json() == {"predictions": [EXPECTED]}


def test_a_bad_row_spoils_the_request_and_all_are_named(ask: Ask) -> None:
    answer = ask("POST", "/v1/models/eta:predict", json={"instances": [ROW | {"distance_km": -4}, ROW, ROW | {"vehicle": "bus"}]})
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    text = answer.json()["error"]
    assert "2 of 3 rows" in text and "instances[0].distance_km: -4 is below 0" in text and "instances[2].vehicle" in text


@pytest.mark.parametrize("address", ADDRESSES)
def test_state(ask: Ask, address: str) -> None:
    fine = {"error_code": "OK", "error_message": ""}
    assert ask("GET", address).json() == {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": fine}]}


@pytest.mark.parametrize("address", ADDRESSES)
def test_metadata(ask: Ask, address: str) -> None:
    found = ask("GET", f"{address}/metadata").json()
    assert found["model_spec"] == {"name": "eta", "signature_name": "", "version": "1"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["distance_km"]["dtype"] == "DT_FLOAT" and signature["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("method", ["classify", "regress"])
def test_models_only_predict(ask: Ask, address: str, method: str) -> None:
    answer = ask("POST", f"{address}:{method}", json={"examples": [ROW]})
    assert answer.status_code == 400 and f"tensorflow/serving/{method}" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models/fare", "there is no model `fare`"),
        ("/v1/models/eta/versions/7", "no version 7"),
        ("/v1/models/eta/versions/x", "not a version"),
        ("/v1/models/eta/versions/-1", "not a version"),
        ("/v1/models/eta/versions/" + "9" * 6000, "not a version"),
        ("/v1/models/eta/labels/beta", "no label `beta`"),
        ("/v1/models/..%2F..%2Fetc", "nothing at"),
        ("/v1/models/%00", "there is no model"),
        ("/v1/models", "nothing at"),
    ],
)
def test_what_is_not_there(ask: Ask, path: str, words: str) -> None:
    answer = ask("GET", path)
    assert answer.status_code == 404 and list(answer.json()) == ["error"] and words in answer.json()["error"]


def test_errors_have_the_shape_of_tensorflow_serving(ask: Ask) -> None:
    for body in (b"{", b"[]", b'{"instances": 5}', b'{"instances": [{}], "inputs": {}}'):
        answer = ask("POST", "/v1/models/eta:predict", content=body)
        assert answer.status_code == 400 and isinstance(answer.json()["error"], str)
    assert ask("PUT", "/v1/models/eta").headers["allow"] == "GET, HEAD"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=0, max_size=60))
def test_numbers_are_the_same_float32_in_fewer_digits(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    assert (np.array(json.loads(json.dumps(shortest(values))), np.float32) == values).all()


@given(st.lists(st.floats(min_value=0.015625, max_value=50_000, width=32), min_size=17, max_size=60))
def test_ordinary_numbers_have_the_fewest_digits(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    assert shortest(values) == [float(str(value)) for value in values]
