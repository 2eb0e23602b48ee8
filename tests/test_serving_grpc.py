"""The gRPC services before TensorFlow Serving's own client: what it asks is answered, and what is wrong is refused by name."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import uvloop
from certificates import self_signed
from hypothesis import given
from hypothesis import strategies as st
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from labline.errors import ParameterError
from labline.models.example import example_bundle, example_contract
from labline.serving.answering import Question
from labline.serving.grpc import GrpcServer
from labline.serving.hosting import Hosted
from labline.serving.messages import CLASSES, to_array, to_columns
from labline.serving.problems import Problem
from labline.serving.release import open_release
from labline.serving.requests import Checker
from labline.serving.service import build_service
from labline.serving.settings import Settings

ROWS = {
    "requested_at": ["2025-03-03T08:30:00", "2025-03-04T09:00:00", "2025-03-05T10:15:00"],
    "zone": ["north", "south", "west"],
    "vehicle": ["car", "van", "car"],
    "distance_km": [4.0, 10.5, float("nan")],
    "passengers": [1.0, 2.0, float("nan")],
}
CODE = grpc.StatusCode


class Answering:
    """Answers with one release, as often as a test lets it."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted, self.asked, self.fault = hosted, [], None
        self.gate: asyncio.Event | None = None
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    async def answer(self, question: Question) -> SimpleNamespace:
        checked, version, label = question.checked, question.version, question.label
        self.asked.append((question.request, version, label))
        if self.fault is not None:
            raise self.fault
        if self.gate is not None:
            self.waiting.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        release, ids = self.hosted.find(version, label), [f"id-{place}" for place in checked.places]
        return SimpleNamespace(release=release.label, ids=ids, values=release.predictor.predict(checked.rows), warnings=checked.warnings)


class Metrics:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.rows: list[tuple] = []

    def observe_request(self, *observed: Any) -> None:
        self.calls.append(observed)

    def observe_rows(self, *observed: Any) -> None:
        self.rows.append(observed)


class Keys:
    """One key that reads, and one that only writes."""

    def check(self, secret: str) -> Any:
        roles = {"reader": ["read"], "writer": ["write"]}.get(secret)
        return roles and SimpleNamespace(roles=roles)

    def list(self) -> Any:
        return ["reader", "writer"]


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=90)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Version 3 is live, version 2 was before."""
    folder = tmp_path_factory.mktemp("bundles")
    older, newer = (open_release(example_bundle(folder, version=version).path, settings=Settings()) for version in (2, 3))
    yield Hosted.of(newer, previous=older)
    newer.close()
    older.close()


@pytest.fixture
def service(hosted: Hosted) -> SimpleNamespace:
    one = Answering(hosted)

    def answering(name: str | None) -> Answering:
        if name not in (None, "eta"):
            raise Problem(404, f"there is no model `{name}`; there is `eta`")
        return one

    return SimpleNamespace(one=one, answering=answering, settings=Settings(drain_seconds=5.0), keys=Keys(), metrics=Metrics())


@contextmanager
def served(loop: Loop, service: Any) -> Iterator[int]:
    server = GrpcServer(service, port=0)

    async def stop() -> None:
        await server.stop()

    port = loop.run(server.start())
    try:
        yield port
    finally:
        gate = getattr(getattr(service, "one", None), "gate", None)
        if gate is not None:
            loop.loop.call_soon_threadsafe(gate.set)
        loop.run(stop())


@pytest.fixture
def channel(loop: Loop, service: SimpleNamespace) -> Iterator[grpc.Channel]:
    with served(loop, service) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    """TensorFlow Serving's own."""
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def asking(shape: tuple[int, ...] = (3,), **changed: Any) -> predict_pb2.PredictRequest:
    """The three rows, some columns changed or, with None, left out."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "eta"
    for name, values in (ROWS | changed).items():
        if values is not None:
            tensor = values if isinstance(values, tensor_pb2.TensorProto) else make_tensor_proto(values, shape=shape)
            request.inputs[name].CopyFrom(tensor)
    return request


def refused(ask: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return caught.value


def trailer(call: Any) -> dict[str, str]:
    return {name: value for name, value in call.trailing_metadata() if isinstance(value, str)}


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_the_official_client_gets_answers(stub: Any, service: SimpleNamespace, shape: tuple[int, ...]) -> None:
    response, call = stub.Predict.with_call(asking(shape), timeout=60, metadata=[("x-request-id", "r-1")])
    assert make_ndarray(response.outputs["minutes"]).tolist() == [11.0, 24.0, 13.0]
    assert sorted(response.outputs) == ["minutes", "minutes_high", "minutes_low"] and len(response.outputs["minutes"].float_val) == 3
    assert (response.model_spec.name, response.model_spec.version.value, response.model_spec.signature_name) == ("eta", 3, "serving_default")
    assert trailer(call)["x-request-id"] == "r-1" and trailer(call)["labline-release"] == "eta@v3"
    assert service.one.asked == [("r-1", None, None)]
    ((path, method, status, seconds),) = service.metrics.calls
    assert (path, method, status) == ("/tensorflow.serving.PredictionService/Predict", "POST", 200) and seconds > 0


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64])
def test_other_numbers_are_taken_too(stub: Any, kind: type) -> None:
    response = stub.Predict(asking(distance_km=np.array([4, 10, 2], kind), passengers=np.array([1, 2, 3], kind)), timeout=60)
    assert make_ndarray(response.outputs["minutes"]).tolist() == [11.0, 23.0, 7.0]


def test_what_is_looked_up_may_be_sent(stub: Any) -> None:
    response = stub.Predict(asking(speed_kmh=[60.0, 60.0, float("nan")]), timeout=60)
    assert make_ndarray(response.outputs["minutes"]).tolist() == [7.0, 13.5, 13.0]


def test_an_output_filter_is_honoured(stub: Any) -> None:
    request = asking()
    request.output_filter.extend(["minutes_low", "prediction_id"])
    response = stub.Predict(request, timeout=60)
    assert sorted(response.outputs) == ["minutes_low", "prediction_id"]
    assert make_ndarray(response.outputs["prediction_id"]).tolist() == [b"id-0", b"id-1", b"id-2"]
    request.output_filter.append("hours")
    error = refused(lambda: stub.Predict(request, timeout=60))
    assert error.code() is CODE.INVALID_ARGUMENT and "`hours`" in error.details() and "`minutes`" in error.details()


def test_warnings_are_in_the_trailer(stub: Any) -> None:
    _, call = stub.Predict.with_call(asking(zone=["north", "Süd", "east"]), timeout=60)
    (warning,) = json.loads(trailer(call)["labline-warnings"])
    assert "zone" in warning and "Süd" in warning
    _, call = stub.Predict.with_call(asking(zone=["north", "south", "east"], distance_km=[4.0, 10.5, 5.0]), timeout=60)
    assert "labline-warnings" not in trailer(call)




def floats(size: int, **fields: Any) -> dict[str, Any]:
    """A tensor of that many rows, whatever its values are."""
    return {"distance_km": tensor_pb2.TensorProto(**{"dtype": 1, "tensor_shape": {"dim": [{"size": size}]}} | fields)}


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"distance": [1.0, 2.0, 3.0]}, "inputs.distance: there is no such input"),
    "missing": ({"zone": None}, "inputs: missing: `zone`"),
    "text for numbers": ({"distance_km": ["a", "b", "c"]}, "inputs.distance_km: the column takes numbers, not text"),
    "numbers for text": ({"zone": [1.0, 2.0, 3.0]}, "inputs.zone: the column takes text, not numbers"),
    "another length": ({"zone": make_tensor_proto(["north"])}, "inputs: the inputs have different numbers of rows"),
    "two dimensions": ({"distance_km": make_tensor_proto(np.ones((3, 2), "f4"))}, "inputs.distance_km: the shape must be"),
    "no dimension": ({"distance_km": make_tensor_proto(1.0)}, "inputs.distance_km: the shape must be"),
    "a negative dimension": (floats(-1), "inputs.distance_km: the shape must be"),
    "a huge dimension": (floats(2**60, float_val=[1]), "inputs.distance_km: 1152921504606846976 rows"),
    "too little content": (floats(3, tensor_content=b"12"), "inputs.distance_km: 2 bytes"),
    "too many values": (floats(3, float_val=[1] * 9), "inputs.distance_km: there are 9 values"),
    "another type": (floats(3, dtype=8), "inputs.distance_km: the type must be"),
    "no UTF-8": ({"zone": make_tensor_proto([b"\xff", b"a", b"b"])}, "inputs.zone: text must be UTF-8"),
    "a value out of range": ({"distance_km": [4.0, -4.0, 5.0]}, "1 of 3 rows are refused; inputs[1].distance_km: -4"),
    "an unknown category": ({"vehicle": ["car", "boat", "van"]}, "inputs[1].vehicle"),
    "infinity": ({"distance_km": [4.0, float("inf"), 5.0]}, "inputs[1].distance_km"),
    "nothing": (dict.fromkeys(ROWS), "inputs"),
    "no rows": ({name: make_tensor_proto(np.array(values)[:0]) for name, values in ROWS.items()}, "there are no rows"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_by_name(stub: Any, service: SimpleNamespace, case: str) -> None:
    changed, expected = REFUSALS[case]
    error = refused(lambda: stub.Predict(asking(**changed), timeout=60))
    assert error.code() is CODE.INVALID_ARGUMENT and expected in error.details(), error.details()
    assert service.one.asked == [] and service.metrics.rows == ([("eta", "eta@v3", 0, 3)] if "rows are refused" in error.details() else [])


def test_many_bad_rows_make_no_long_text(stub: Any) -> None:
    rows = {name: values * 1000 for name, values in ROWS.items()} | {"vehicle": ["bööt" * 50] * 3000}
    error = refused(lambda: stub.Predict(asking((3000,), **rows), timeout=60))
    assert error.code() is CODE.INVALID_ARGUMENT and error.details().startswith("3000 of 3000 rows are refused") and len(error.details()) <= 2000


def test_metadata_are_those_of_the_saved_model(stub: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "eta"
    response = stub.GetModelMetadata(request, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert set(signature.inputs) == {*ROWS, "speed_kmh"} and set(signature.outputs) == {"minutes", "minutes_low", "minutes_high"}
    assert signature.method_name == "tensorflow/serving/predict" and response.model_spec.version.value == 3
    request.metadata_field[:] = ["weights"]
    assert refused(lambda: stub.GetModelMetadata(request, timeout=60)).code() is CODE.INVALID_ARGUMENT


def test_status_tells_the_versions(channel: grpc.Channel) -> None:
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "eta"
    status = models.GetModelStatus(request, timeout=60).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(version.version, version.state, version.status.error_code) for version in status] == [(3, available, 0), (2, available, 0)]
    request.model_spec.version_label = "previous"
    assert [version.version for version in models.GetModelStatus(request, timeout=60).model_version_status] == [2]
    request.model_spec.version.value = 9
    assert refused(lambda: models.GetModelStatus(request, timeout=60)).code() is CODE.NOT_FOUND


def test_models_versions_and_labels_are_found_or_named(stub: Any, service: SimpleNamespace) -> None:
    request = asking()
    request.model_spec.version.value = 2
    stub.Predict(request, timeout=60)
    request.model_spec.version_label = "previous"
    assert stub.Predict(request, timeout=60).model_spec.version.value == 2
    assert [(version, label) for _, version, label in service.one.asked] == [(2, None), (None, "previous")]
    request.model_spec.name = "../eta"
    error = refused(lambda: stub.Predict(request, timeout=60))
    assert error.code() is CODE.NOT_FOUND and "there is `eta`" in error.details()
    request = asking()
    request.model_spec.signature_name = "train"
    assert refused(lambda: stub.Predict(request, timeout=60)).code() is CODE.INVALID_ARGUMENT


def test_other_methods_and_other_bytes_are_refused(stub: Any, channel: grpc.Channel) -> None:
    from tensorflow_serving.apis import classification_pb2

    assert refused(lambda: stub.Classify(classification_pb2.ClassificationRequest(), timeout=60)).code() is CODE.UNIMPLEMENTED
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    for body in (b"\xff", b"", b"{}", bytes(1000)):
        assert refused(lambda body=body: predict(body, timeout=60)).code() is CODE.INVALID_ARGUMENT


PROBLEMS = [
    (Problem(429, "too many rows wait", retry_after=1.5), CODE.RESOURCE_EXHAUSTED),
    (Problem(503, "the log is away", retry_after=1.5), CODE.UNAVAILABLE),
    (Problem(504, "time is up"), CODE.DEADLINE_EXCEEDED),
    (Problem(500, "the model failed"), CODE.INTERNAL),
    (Problem(404, "there is no version 7"), CODE.NOT_FOUND),
]


@pytest.mark.parametrize(("fault", "code"), PROBLEMS, ids=[code.name for _, code in PROBLEMS])
def test_problems_have_their_status(stub: Any, service: SimpleNamespace, fault: Problem, code: grpc.StatusCode) -> None:
    service.one.fault = fault
    error = refused(lambda: stub.Predict(asking(), timeout=60))
    assert (error.code(), error.details()) == (code, fault.message)
    assert trailer(error).get("retry-after") == (None if fault.retry_after is None else "2") and trailer(error)["x-request-id"]
    assert service.metrics.calls[-1][2] == fault.status


def test_what_breaks_inside_is_not_told(stub: Any, service: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    service.one.fault = KeyError("/secret/path")
    error = refused(lambda: stub.Predict(asking(), timeout=60, metadata=[("x-request-id", "r-9")]))
    assert error.code() is CODE.INTERNAL and "secret" not in error.details() and trailer(error)["x-request-id"] == "r-9"
    assert "/secret/path" in caplog.text and {record.request for record in caplog.records} == {"r-9"}  # type: ignore[attr-defined]
    service.one.fault = None
    assert len(stub.Predict(asking(), timeout=60).outputs) == 3


def test_keys_open_the_service(loop: Loop, service: SimpleNamespace) -> None:
    service.settings = Settings(require_keys="yes")
    with served(loop, service) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        keys_open(prediction_service_pb2_grpc.PredictionServiceStub(channel))
    service.keys = SimpleNamespace(list=list)
    with pytest.raises(ParameterError, match="there is no key"):
        GrpcServer(service)


def keys_open(stub: Any) -> None:
    for sent in (None, "Bearer guess", "reader", "Bearer writer"):
        metadata, code = [("authorization", sent)] if sent else [], CODE.PERMISSION_DENIED if sent == "Bearer writer" else CODE.UNAUTHENTICATED
        assert refused(lambda metadata=metadata: stub.Predict(asking(), timeout=60, metadata=metadata)).code() is code
    assert len(stub.Predict(asking(), timeout=60, metadata=[("authorization", "Bearer reader")]).outputs) == 3


def test_a_message_that_is_too_large_is_refused(loop: Loop, service: SimpleNamespace) -> None:
    service.settings = Settings(most_body_mb=0.01)
    with served(loop, service) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        error = refused(lambda: stub.Predict(asking(zone=["x" * 20_000] * 3), timeout=60))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert len(stub.Predict(asking(), timeout=60).outputs) == 3


def test_the_deadline_of_the_client_ends_the_work(loop: Loop, stub: Any, service: SimpleNamespace) -> None:
    service.one.gate = asyncio.Event()
    error = refused(lambda: stub.Predict(asking(), timeout=0.2))
    assert error.code() is CODE.DEADLINE_EXCEEDED and service.one.cancelled.wait(60)


def test_a_client_that_goes_away_ends_the_work(loop: Loop, stub: Any, service: SimpleNamespace) -> None:
    service.one.gate = asyncio.Event()
    asked = stub.Predict.future(asking(), timeout=90)
    assert service.one.waiting.wait(60)
    asked.cancel()
    assert service.one.cancelled.wait(60)
    service.one.gate = None
    assert len(stub.Predict(asking(), timeout=60).outputs) == 3


def test_stopping_answers_what_is_under_way(loop: Loop, service: SimpleNamespace) -> None:
    service.one.gate = asyncio.Event()
    server = GrpcServer(service, port=0)
    port = loop.run(server.start())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        asked = [stub.Predict.future(asking(), timeout=90) for _ in range(8)]
        while len(service.one.asked) < len(asked):
            assert service.one.waiting.wait(60)
        stopping = asyncio.run_coroutine_threadsafe(server.stop(), loop.loop)
        while not server.ends:
            assert not stopping.done()
        error = refused(lambda: stub.Predict(asking(), timeout=60))
        assert (error.code(), error.details()) == (CODE.UNAVAILABLE, "the service ends; ask again") and not stopping.done()
        loop.loop.call_soon_threadsafe(service.one.gate.set)
        assert [len(answer.result(timeout=60).outputs) for answer in asked] == [3] * 8
        stopping.result(timeout=90)


def test_many_calls_at_once(stub: Any, service: SimpleNamespace) -> None:
    requests = [asking((1,), **{name: values[:1] for name, values in ROWS.items()} | {"distance_km": [distance / 10]}) for distance in range(300)]
    answers = [stub.Predict.future(request, timeout=90) for request in requests]
    found = [float(answer.result().outputs["minutes"].float_val[0]) for answer in answers]
    assert np.allclose(found, [3 + 2 * distance / 10 for distance in range(300)], rtol=1e-5)


def test_tls_by_settings(loop: Loop, service: SimpleNamespace, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    service.settings = Settings(certificate=certificate, private_key=key)
    trusted = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
    with served(loop, service) as port, grpc.secure_channel(f"localhost:{port}", trusted) as channel:
        assert len(prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(asking(), timeout=60).outputs) == 3
        with grpc.insecure_channel(f"127.0.0.1:{port}") as plain:
            error = refused(lambda: prediction_service_pb2_grpc.PredictionServiceStub(plain).Predict(asking(), timeout=60))
            assert error.code() is CODE.UNAVAILABLE


def test_a_server_that_cannot_start_says_why(loop: Loop, service: SimpleNamespace) -> None:
    with served(loop, service) as port, pytest.raises(ParameterError, match=f"127.0.0.1:{port}"):
        loop.run(GrpcServer(service, port=port).start())


@pytest.mark.parametrize("content", [None, b"garbage"])
def test_a_certificate_that_is_none_is_refused(loop: Loop, service: SimpleNamespace, tmp_path: Path, content: bytes | None) -> None:
    for name in ("a.pem", "b.pem") if content else ():
        (tmp_path / name).write_bytes(content)
    service.settings = Settings(certificate=f"{tmp_path}/a.pem", private_key=f"{tmp_path}/b.pem")
    with pytest.raises(ParameterError, match="cannot be used"):
        loop.run(GrpcServer(service, port=0).start())


def test_what_is_answered_is_logged(loop: Loop, hosted: Hosted, tmp_path: Path) -> None:
    """The whole service, with nothing standing in."""
    settings = Settings(log=f"sqlite:///{tmp_path}/log.db", state=f"{tmp_path}/state.json", keys=f"{tmp_path}/keys.json")
    service = build_service([hosted], settings)
    request = asking(trip_id=["a", "b", "c"])
    request.output_filter.extend(["minutes", "prediction_id"])
    with served(loop, service) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=90, metadata=[("x-request-id", "r-2")])
    assert service.log is not None
    entries = [service.log.find(name.decode()) for name in response.outputs["prediction_id"].string_val]
    loop.run(service.close())
    assert [(entry.key, entry.request, entry.version) for entry in entries if entry is not None] == [(key, "r-2", 3) for key in "abc"]
    assert make_ndarray(response.outputs["minutes"]).tolist() == [11.0, 24.0, 13.0]
    assert 'labline_rows_total{model="eta",outcome="good",release="eta@v3"} 3' in service.metrics.render().decode()


ARRAYS = [np.arange(7, dtype=kind) for kind in ("f4", "f8", "i4", "i8")] + [np.array([True, False, True]), np.ones(1000, "f4"), np.zeros(50, "i8")]


@pytest.mark.parametrize("array", ARRAYS, ids=[f"{array.dtype}-{len(array)}" for array in ARRAYS])
def test_tensors_are_read_as_tensorflow_reads_them(array: np.ndarray) -> None:
    listed = make_tensor_proto(array.tolist(), dtype=make_tensor_proto(array).dtype)
    for tensor in (make_tensor_proto(array), listed, make_tensor_proto(array.reshape(-1, 1))):
        ours = CLASSES["TensorProto"].FromString(tensor.SerializeToString())
        assert to_array(ours, "x").tolist() == make_ndarray(tensor).ravel().tolist() and to_array(ours, "x").dtype == array.dtype


CONTRACT = example_contract()
CHECKER = Checker(CONTRACT)
TENSORS = st.builds(
    lambda dims, **fields: CLASSES["TensorProto"](tensor_shape={"dim": [{"size": size} for size in dims]}, **fields),
    dims=st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1)), max_size=3),
    dtype=st.integers(-3, 140),
    tensor_content=st.binary(max_size=32),
    float_val=st.lists(st.floats(width=32), max_size=4),
    string_val=st.lists(st.binary(max_size=4), max_size=4),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
)


@given(st.dictionaries(st.sampled_from([*ROWS, "speed_kmh", "trip_id", "minutes", "x\n"]), TENSORS))
def test_whatever_is_sent_is_read_or_refused(inputs: dict[str, Any]) -> None:
    try:
        checked = CHECKER.columns(to_columns(inputs, CONTRACT), prefix="inputs")
    except Problem as problem:
        assert 400 <= problem.status < 500 and problem.message
    else:
        assert len(checked.rows) + len({error.place for error in checked.errors}) == checked.total
