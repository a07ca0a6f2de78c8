"""What the flow `retrain` does with the model that came of it; its stages are DVC's and are not run here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows import retrain as flow
from qualivision import registry

NEW, CHAMPION = 2, 1


@pytest.fixture
def night(tmp_path, monkeypatch):
    """`night(champion=, judged=, objection=)` runs the flow without Prefect; returns its result and what it called."""
    shutil.copy(Path(__file__).parents[1] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*, champion: int | None, judged: bool = False, objection: str | None = None):
        called = []
        monkeypatch.setattr(flow, "repro", lambda stage: False)
        monkeypatch.setattr(flow, "show_metrics", lambda model: None)
        monkeypatch.setattr(flow, "register", lambda model: NEW)
        monkeypatch.setattr(flow, "gate", lambda version: called.append(f"gate {version}"))
        monkeypatch.setattr(flow, "promote", lambda version: called.append(f"promote {version}"))
        monkeypatch.setattr(registry, "version_of", lambda alias, settings: champion)
        monkeypatch.setattr(registry, "needs_gate", lambda version, settings: not judged)
        monkeypatch.setattr(registry, "objection", lambda version, settings: objection)
        return flow.retrain.fn(), called

    return run


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_model_that_passes_the_gate_becomes_champion(night, champion):
    done, called = night(champion=champion)
    assert called == [f"gate {NEW}", f"promote {NEW}"]
    assert done == {"ran": [], "champion": "models:/qualivision/2", "objection": None}


def test_one_that_does_not_pass_is_no_failure_and_the_champion_stays(night):
    done, called = night(champion=CHAMPION, objection="did not pass the gate")
    assert called == [f"gate {NEW}"]
    assert done == {"ran": [], "champion": "models:/qualivision/1", "objection": "did not pass the gate"}


def test_the_same_model_is_judged_once_and_not_every_night(night):
    assert night(champion=CHAMPION, judged=True, objection="did not pass the gate")[1] == []


def test_what_is_champion_already_is_left_alone(night):
    done, called = night(champion=NEW)
    assert called == [] and done["champion"] == "models:/qualivision/2"
