"""What the flow `monitor` makes of a report: what it shows, and whether it opens a retraining."""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from flows import monitor as flow
from qualivision import environment, monitoring
from qualivision.monitoring.drift import Change, Figure, Side
from qualivision.monitoring.report import Report
from qualivision.settings import MonitorSettings, SettingsError, load_settings

ROOT = Path(__file__).parents[1]
CHAMPION = "models:/qualivision/1"


def report(*names: str, champion: str = CHAMPION) -> Report:
    sides = (Side(200, 1, 2, 3), Side(50, 4, 5, 6))
    changes = [Change(Figure(name, kind="score"), *sides, 0.5, 0.3, 0.001, "higher", True) for name in names]
    changes.append(Change(Figure("width"), *sides, 0.1, 0.3, 0.9, "higher"))
    return Report(champion, "now", (200, 50), (40, 10), tuple(changes), (), (), MonitorSettings())


@pytest.fixture
def night(tmp_path, monkeypatch):
    """`night(report, ...)` runs the flow without Prefect; returns its message, and the retrainings it opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(environment, "STATE", tmp_path / "state")
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("night"))
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda **artifact: shown.append(artifact))

    def run(found: Report, *, deployed: bool = True, **parameters: object) -> tuple[str, list[str]]:
        opened: list[str] = []

        def deploy(name, *, parameters, timeout, as_subflow):
            assert (name, timeout, as_subflow) == ("retrain/nightly", 0, False)
            if not deployed:
                raise ObjectNotFound(http_exc=Exception("404"))
            opened.append(parameters["why"])
            return FlowRun(flow_id=uuid4(), name=f"run-{len(opened)}")

        monkeypatch.setattr(flow, "run_deployment", deploy)
        monkeypatch.setattr(monitoring, "look", lambda settings, data, advance: found)
        state = flow.monitor.fn(**parameters)
        assert state.is_completed()
        assert shown[-1]["key"] == "drift" and shown[-1]["description"] == found.line
        assert (tmp_path / "reports" / "drift.json").exists()
        return state.message, opened

    return run


def test_no_drift_opens_nothing(night):
    message, opened = night(report())
    assert message == "no drift: 50 clips against 200 of the reference, in 1 figures" and opened == []


def test_a_drift_opens_one_retraining_and_says_why(night):
    message, opened = night(report("Overall", "Temporal"))
    assert opened == [f"drift under {CHAMPION}: Overall higher, Temporal higher"]
    assert message.endswith("; retraining run-1 is opened")


def test_the_same_drift_opens_none_the_next_night_and_more_of_it_does(night):
    night(report("Overall"))
    message, opened = night(report("Overall"))
    assert opened == [] and message.endswith("; a retraining was opened for it before")
    _, opened = night(report("Overall", "Temporal"))
    assert opened == [f"drift under {CHAMPION}: Temporal higher"]
    _, opened = night(report("Overall", champion="models:/qualivision/2"))
    assert opened == ["drift under models:/qualivision/2: Overall higher"]


def test_without_a_deployment_it_says_so_and_opens_it_once_there_is_one(night):
    message, opened = night(report("Overall"), deployed=False)
    assert opened == [] and "there is no deployment retrain/nightly; `python -m flows.deploy` makes it" in message
    assert night(report("Overall"))[1] == [f"drift under {CHAMPION}: Overall higher"]


def test_told_to_open_nothing_it_tells_the_drift_alone(night):
    message, opened = night(report("Overall"), open_retraining=False)
    assert message == report("Overall").line and opened == []
    assert night(report("Overall"))[1] != []


def test_parameters_go_before_the_settings_and_have_their_bounds(night, monkeypatch):
    seen = []
    night(report(), scores=Path("elsewhere"), videos=[Path("a")], days=2.5, clips=30)
    monkeypatch.setattr(monitoring, "look", lambda settings, data, advance: seen.append(settings.monitor) or report())
    flow.monitor.fn(scores=Path("elsewhere"), videos=[Path("a")], days=2.5, clips=30)
    flow.monitor.fn()
    assert seen[0] == load_settings().monitor.but(scores="elsewhere", videos=("a",), days=2.5, clips=30)
    assert seen[1] == load_settings().monitor
    with pytest.raises(SettingsError, match="monitor: clips: Input should be greater than or equal to 20"):
        flow.monitor.fn(clips=3)


def test_every_parameter_is_explained_in_the_ui():
    from prefect.utilities.callables import parameter_schema

    properties = parameter_schema(flow.monitor).properties
    assert set(properties) == {"scores", "videos", "days", "clips", "open_retraining"}
    assert all(len(one["description"]) > 20 for one in properties.values())
