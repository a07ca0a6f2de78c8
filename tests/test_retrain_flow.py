"""What the flow `retrain` does with the model that came of it; its stages are DVC's and are not run here."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.utilities.callables import parameter_schema

from flows import retrain as flow
from qualivision import approval, registry
from qualivision.approval import Question
from qualivision.settings import load_settings

NEW, CHAMPION = 2, 1
RUN = "a run"


@pytest.fixture
def night(tmp_path, monkeypatch):
    """`night(champion=, ...)` decides about version 2 without Prefect; returns what came of it and what was called."""
    shutil.copy(Path(__file__).parents[1] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(
        *,
        champion: int | None,
        mode: str = "auto",
        judged: bool = False,
        objection: str | None = None,
        asked: Question | None = None,
        is_open: bool = False,
        can_ask: bool = True,
        answer: str = "approve",
    ):
        called = []
        monkeypatch.setattr(flow, "gate", lambda version: called.append(f"gate {version}"))
        monkeypatch.setattr(flow, "promote", lambda version, who, why: called.append(f"promote {version} {who}"))
        monkeypatch.setattr(registry, "version_of", lambda alias, settings: champion)
        monkeypatch.setattr(registry, "needs_gate", lambda version, settings, data: not judged and not called)
        monkeypatch.setattr(registry, "objection", lambda version, settings: objection)
        monkeypatch.setattr(registry, "verdict_of", lambda version, settings: None)
        monkeypatch.setattr(approval, "question_of", lambda version, settings: asked)
        monkeypatch.setattr(approval, "close", lambda question, state, settings, who, why: f"{state} by {who}: {why}")
        monkeypatch.setattr(flow.asking, "can_ask", lambda: can_ask)
        monkeypatch.setattr(flow.asking, "is_open", lambda question: is_open)
        monkeypatch.setattr(flow.asking, "ask", lambda version, against, settings: question(against=against))
        said = SimpleNamespace(decision=answer, reason="looks fine", who="somebody")
        monkeypatch.setattr(flow.asking, "answer", lambda question, text, settings: called.append("asked") or said)
        settings = load_settings()
        settings = settings.model_copy(update={"flows": settings.flows.model_copy(update={"approval": mode})})
        return flow._decide(NEW, settings), called

    return run


def question(**given) -> Question:
    start = {"version": NEW, "against": CHAMPION, "flow_run": "another run", "where": "a page"}
    return Question(**start | {"asked": "2026-01-01T00:00:00+00:00", "until": "2999-01-01T00:00:00+00:00"} | given)


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_model_that_passes_the_gate_becomes_champion_where_nobody_is_to_be_asked(night, champion):
    done, called = night(champion=champion)
    assert called == [f"gate {NEW}", f"promote {NEW} None"]
    assert done == "models:/qualivision/2 passed the gate and is the champion"


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_one_that_does_not_pass_is_no_failure_and_the_champion_stays(night, mode):
    done, called = night(champion=CHAMPION, objection="did not pass the gate", mode=mode)
    assert called == [f"gate {NEW}"]
    assert done == "did not pass the gate; the champion stays 1"


def test_the_same_model_is_judged_once_and_not_every_night(night):
    assert night(champion=CHAMPION, judged=True, objection="did not pass the gate")[1] == []


def test_what_is_champion_already_is_left_alone(night):
    done, called = night(champion=NEW)
    assert called == [] and done == "models:/qualivision/2 is the champion"


def test_a_person_who_approves_makes_it_champion(night):
    done, called = night(champion=CHAMPION, mode="manual")
    assert called == [f"gate {NEW}", "asked", f"promote {NEW} somebody"]
    assert done == "models:/qualivision/2 was approved by somebody: looks fine; it is the champion"


def test_a_person_who_rejects_changes_nothing(night):
    done, called = night(champion=CHAMPION, mode="manual", answer="reject")
    assert called == [f"gate {NEW}", "asked"]
    assert done == "models:/qualivision/2 was rejected by somebody: looks fine"


@pytest.mark.parametrize(
    ("asked", "is_open", "said"),
    [
        (question(state="rejected", who="somebody", why="too soft"), False, "rejected by somebody: too soft"),
        (question(state="lapsed"), False, "nobody answered until 2999"),
        (question(until="2026-01-02T00:00:00+00:00"), False, "waits for an answer until 2026"),
        (question(), True, "waits for an answer until 2999"),
    ],
)
def test_nobody_is_asked_twice_about_the_same_two_models(night, asked, is_open, said):
    done, called = night(champion=CHAMPION, mode="manual", judged=True, asked=asked, is_open=is_open)
    assert called == [] and said in done


@pytest.mark.parametrize(
    "asked",
    [
        question(state="withdrawn"),  # its run was cancelled
        question(),  # its run is gone without a word
        question(against=7, state="rejected"),  # it was about another champion
    ],
)
def test_a_question_that_came_to_nothing_is_asked_again(night, asked):
    assert night(champion=CHAMPION, mode="manual", judged=True, asked=asked)[1] == ["asked", f"promote {NEW} somebody"]


def test_a_run_that_cannot_be_suspended_leaves_the_promotion_to_the_command(night):
    done, called = night(champion=CHAMPION, mode="manual", can_ask=False)
    assert called == [f"gate {NEW}"] and "`qualivision promote 2`" in done


@pytest.mark.parametrize("name", ["retrain:retrain", "ingest:ingest", "monitor:monitor", "score_batch:score_batch"])
def test_the_form_of_a_flow_has_types_and_explanations(name):
    module, _, function = name.partition(":")
    found = parameter_schema(getattr(import_module(f"flows.{module}"), function)).model_dump()["properties"]
    assert found
    for parameter, says in found.items():
        assert {"type", "anyOf"} & set(says) and says["description"], parameter


@pytest.mark.parametrize(
    ("mode", "answer", "kept"),
    [
        ("auto", "approve", ["models:/qualivision/2 passed the gate and is the champion"]),
        # Nothing follows the question in a run that is suspended: the commit comes before it.
        ("manual", "approve", ["waits for approval", "models:/qualivision/2 was approved by somebody: looks fine"]),
    ],
)
def test_what_was_made_is_committed_with_what_was_decided_or_before_somebody_is_asked(
    night, monkeypatch, mode, answer, kept
):
    committed = []
    monkeypatch.setattr(flow.lineage, "check_branch", lambda branch: None)
    monkeypatch.setattr(flow, "is_current", lambda: False)
    monkeypatch.setattr(flow, "build", lambda settings, rebuild: ["train@lite"])
    monkeypatch.setattr(flow, "report", lambda models: None)
    monkeypatch.setattr(flow, "register", lambda model: NEW)
    monkeypatch.setattr(
        flow, "commit_lineage", lambda branch, ran, uri, said: committed.append((branch, ran, uri, said)) or "committed"
    )
    night(champion=CHAMPION, mode=mode)  # its stand-ins for the registry stay
    settings = load_settings()
    flows = settings.flows.model_copy(update={"approval": mode, "commit_branch": "nightly"})
    done = flow._from_the_top(settings.model_copy(update={"flows": flows}), rebuild=False)
    assert done.startswith("ran train@lite; models:/qualivision/2 ") and done.endswith("; committed")
    assert [line[:3] for line in committed] == [("nightly", ["train@lite"], "models:/qualivision/2")] * len(kept)
    assert all(line[3].startswith(said) for line, said in zip(committed, kept, strict=True))
