"""The graph of the stages as Prefect runs it: models side by side, and no two stages on one card."""

from __future__ import annotations

import threading
import time
from itertools import combinations
from pathlib import Path

import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows import stages
from qualivision.settings import EnsembleSettings, load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def prefect():
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        yield


@pytest.mark.slow
def test_models_are_built_side_by_side_and_no_two_stages_share_a_card(prefect, monkeypatch):
    ran: dict[str, tuple[float, float]] = {}
    together = threading.Barrier(2, timeout=60)

    def stand_in(stage: str, say, *, seconds: float, force: bool) -> bool:
        start = time.monotonic()
        if stage.startswith("frames@"):
            together.wait()  # comes back when both models are at it, and only then
        time.sleep(0.3)
        ran[stage] = start, time.monotonic()
        return True

    monkeypatch.setattr(stages, "repro_here", stand_in)
    members = EnsembleSettings(members=["dover", "vjepa2"])
    changes = {"models": ("dover", "vjepa2"), "ensembles": ("ensemble",), "ensemble": members}
    settings = load_settings(ROOT / "params.yaml").model_copy(update=changes)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=16))
    def both() -> list[str]:
        return stages.build(settings)

    kinds = ("frames", "prompts", "encode", "train", "evaluate")
    of_models = [f"{kind}@{model}" for kind in kinds for model in settings.models]
    of_ensemble = ["member@ensemble-dover", "member@ensemble-vjepa2", "ensemble@ensemble", "evaluate-ensemble@ensemble"]
    assert sorted(both()) == sorted(["validate", *of_models, *of_ensemble])
    for model in settings.models:
        encode, train, evaluate = (ran[f"{kind}@{model}"] for kind in ("encode", "train", "evaluate"))
        assert ran["validate"][1] <= ran[f"frames@{model}"][0] and ran[f"frames@{model}"][1] <= encode[0]
        assert encode[1] <= train[0] and ran[f"prompts@{model}"][1] <= train[0] and train[1] <= evaluate[0]
        assert train[1] <= ran[f"member@ensemble-{model}"][0]
        assert ran[f"member@ensemble-{model}"][1] <= ran["ensemble@ensemble"][0]
    assert ran["ensemble@ensemble"][1] <= ran["evaluate-ensemble@ensemble"][0]
    on_cards = [ran[f"{kind}@{model}"] for kind in ("encode", "train", "evaluate") for model in settings.models]
    on_cards += [ran[f"member@ensemble-{model}"] for model in settings.models]
    on_cards.append(ran["evaluate-ensemble@ensemble"])
    for one, other in combinations(on_cards, 2):  # flows.gpus is 1
        assert one[1] <= other[0] or other[1] <= one[0]
