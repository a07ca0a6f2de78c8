"""`dvc.yaml`: what makes a stage run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
GENERATED = ("data", "cache", "checkpoints", "reports")


def for_lite(text: str) -> str:
    return text.replace("${item.model}", "lite")


def command(name: str) -> str:
    """Of the stage `evaluate-ensemble` it is `evaluate`."""
    return name.partition("-")[0]


def outputs(stage: dict[str, Any]) -> set[str]:
    listed = [*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())]
    return {for_lite(next(iter(out)) if isinstance(out, dict) else out) for out in listed}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_own_module_and_on_code_that_exists(name):
    deps = [for_lite(dep) for dep in STAGES[name]["deps"]]
    assert f"qualivision/stages/{command(name)}.py" in deps
    code = [dep for dep in deps if not dep.startswith(GENERATED)]
    assert [dep for dep in code if not (ROOT / dep).exists()] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_the_command_of_its_name(name):
    assert STAGES[name]["cmd"].split()[:2] == ["qualivision", command(name)]


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("lite.train", {"train"}),
        ("lite.network", {"encode", "train"}),  # of some models a stem depends on it; lite's finds all there
        ("lite.frames", {"frames"}),
        ("lite.text", {"prompts"}),
        ("evaluate", {"evaluate", "evaluate-ensemble"}),
        ("ensemble", {"ensemble"}),
        ("validate", {"validate"}),
        ("registry", set()),
    ],
)
def test_a_setting_reruns_only_the_stage_that_reads_it(setting, stages):
    assert {name for name, stage in STAGES.items() if setting in map(for_lite, stage.get("params", ()))} == stages


def test_every_input_that_is_made_here_is_the_output_of_a_stage():
    made = set().union(*map(outputs, STAGES.values()))
    needed = {for_lite(dep) for stage in STAGES.values() for dep in stage["deps"]}
    folders = {"/".join(path.split("/")[:depth]) for path in made for depth in range(2, path.count("/") + 1)}
    assert {dep for dep in needed if dep.startswith(GENERATED[1:])} <= made | folders


def test_caches_and_checkpoints_survive_a_run_so_that_only_what_is_missing_is_made():
    for name in ("frames", "prompts", "encode", "train"):
        (out,) = STAGES[name]["outs"]
        assert next(iter(out.values()))["persist"] is True
