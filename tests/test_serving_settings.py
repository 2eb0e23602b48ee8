"""Settings of the service: which source wins, what is refused, and that the documentation knows each."""

import re
from pathlib import Path

import pytest

from labline.errors import ParameterError
from labline.serving.settings import Settings, check_exposure, describe_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "serving.yaml"


def test_later_sources_win(file: Path) -> None:
    assert Settings.load(environment={}) == Settings()
    file.write_text("port: 1\nworkers: 2\nkeys: file.json\n")
    environment = {"LABLINE_SERVING_PORT": "2", "LABLINE_SERVING_WORKERS": "3", "LABLINE_OTHER": "x"}
    settings = Settings.load(overrides={"port": "3"}, environment=environment)
    assert (settings.port, settings.workers, settings.keys, settings.host) == (3, 3, "file.json", "127.0.0.1")


def test_the_environment_of_the_process_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABLINE_SERVING_REQUEST_SECONDS", "2.5")
    assert Settings.load().request_seconds == 2.5


@pytest.mark.parametrize(
    ("text", "overrides", "environment", "expected"),
    [
        ("prot: 1\n", {}, {}, "serving.yaml: prot: unknown setting `prot`. Did you mean `port`?"),
        ("port: x\n", {}, {}, "serving.yaml: port: `port` has no such value"),
        ("[1]\n", {}, {}, "expected settings as `name: value` lines"),
        ("a: [\n", {}, {}, "not readable as YAML"),
        ("", {"port": "70000"}, {}, "--set port: `port` has no such value"),
        ("", {"workers": "0"}, {}, "workers"),
        ("", {"log_level": "loud"}, {}, "log_level"),
        ("", {"most_rows": "30000"}, {}, "Set `most_waiting_rows` to 30000 or more"),
        ("", {"private_key": "key.pem"}, {}, "Give both, or neither"),
        ("", {}, {"LABLINE_SERVING_PROT": "1"}, "LABLINE_SERVING_PROT: unknown setting `prot`"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(file: Path, text: str, overrides: dict[str, str], environment: dict[str, str], expected: str) -> None:
    file.write_text(text)
    with pytest.raises(ParameterError, match=re.escape(expected)) as caught:
        Settings.load(overrides=overrides, environment=environment)
    assert caught.value.remedy


def test_a_named_file_must_be_there(file: Path) -> None:
    with pytest.raises(ParameterError, match="does not exist"):
        Settings.load("other.yaml", environment={})


def test_a_refused_log_does_not_show_its_password(file: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        Settings.load(overrides={"log": "mysql://somebody:secret@example.org/log"}, environment={})
    assert "secret" not in str(caught.value) and "PostgreSQL" in str(caught.value)


def test_each_setting_is_described() -> None:
    rows = describe_settings()
    assert [row["name"] for row in rows] == list(Settings.__struct_fields__)
    assert all(re.fullmatch(r"\S.+[^.]", row["meaning"]) for row in rows)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_need_a_key(host: str) -> None:
    assert check_exposure(Settings(host=host), keys=1) is True
    with pytest.raises(ParameterError, match="labline key add"):
        check_exposure(Settings(host=host), keys=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_needs_none_unless_asked_for(host: str) -> None:
    assert check_exposure(Settings(host=host), keys=0) is False
    with pytest.raises(ParameterError, match="require_keys"):
        check_exposure(Settings(host=host, require_keys="yes"), keys=0)
