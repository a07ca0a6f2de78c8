"""The process: state in one folder, nothing calls home, what the user set stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qualivision import environment

STATEFUL = ("HF_HOME", "MPLCONFIGDIR", "PREFECT_HOME")
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """An environment that `prepare` has not seen, in an empty folder; put back afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    for name in (*STATEFUL, *TELEMETRY_OFF):
        os.environ.pop(name, None)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_state_lies_below_the_working_folder_and_telemetry_is_off(clean):
    environment.prepare()
    for name in STATEFUL:
        assert Path(os.environ[name]).parent == clean / "state"
    for name, value in TELEMETRY_OFF.items():
        assert os.environ[name] == value


def test_state_can_lie_elsewhere(clean):
    environment.prepare(Path("other"))
    assert os.environ["HF_HOME"] == str(clean / "other" / "huggingface")


def test_what_is_set_already_stays(clean):
    os.environ["HF_HOME"] = "/mine"
    os.environ["DO_NOT_TRACK"] = "0"
    environment.prepare()
    assert (os.environ["HF_HOME"], os.environ["DO_NOT_TRACK"]) == ("/mine", "0")


def test_preparing_makes_no_folder(clean):
    environment.prepare()
    assert os.listdir(clean) == []


def test_the_tests_keep_their_state_in_a_temporary_folder():
    for name in STATEFUL:
        assert not Path(os.environ[name]).is_relative_to(Path(__file__).parents[1])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
