"""`dvc.yaml`: which stages there are, and what makes one run again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import checkout

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


def test_prompts_are_embedded_again_when_the_phrases_beside_them_change():
    assert {"qualivision/models/bridge.py", "qualivision/models/factory.py"} <= set(STAGES["prompts"]["deps"])


def test_an_ensemble_is_evaluated_as_a_model_is():
    one, other = STAGES["evaluate"], STAGES["evaluate-ensemble"]
    assert {out.replace("${item.ensemble}", "lite") for out in outputs(other)} == outputs(one)
    code = [{dep for dep in stage["deps"] if dep.startswith("qualivision/")} for stage in (one, other)]
    assert code[1] == code[0] | {"qualivision/stages/member.py"}


def test_every_input_that_is_made_here_is_the_output_of_a_stage():
    made = set().union(*map(outputs, STAGES.values()))
    needed = {for_lite(dep) for stage in STAGES.values() for dep in stage["deps"]}
    folders = {"/".join(path.split("/")[:depth]) for path in made for depth in range(2, path.count("/") + 1)}
    assert {dep for dep in needed if dep.startswith(GENERATED[1:])} <= made | folders


def test_caches_and_checkpoints_survive_a_run_so_that_only_what_is_missing_is_made():
    for name in ("frames", "prompts", "encode", "train"):
        (out,) = STAGES[name]["outs"]
        assert next(iter(out.values()))["persist"] is True


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(models=...)` makes a checkout with the stages of this repository and some settings changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        subprocess.run(command, check=True)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)

    def make(**changes: Any) -> list[str]:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        Path("params.yaml").write_text(yaml.safe_dump(params | changes))
        listed = subprocess.run(["dvc", "stage", "list", "--name-only"], capture_output=True, text=True, check=True)
        return listed.stdout.split()

    return make


def test_without_an_ensemble_there_are_only_the_stages_of_the_models(project):
    kinds = ("frames", "prompts", "encode", "train", "evaluate")
    assert sorted(project(models=["lite"])) == sorted(["validate", *(f"{kind}@lite" for kind in kinds)])


def test_an_ensemble_has_stages_that_come_after_those_of_its_members(project):
    models = ["lite", "dover", "vjepa2"]
    found = project(models=models, ensembles=["ensemble"], ensemble={"members": ["lite", "dover"]})
    last = {"member@ensemble-lite", "member@ensemble-dover", "ensemble@ensemble", "evaluate-ensemble@ensemble"}
    kinds = ("frames", "prompts", "encode", "train", "evaluate")
    assert {*found} - {f"{kind}@{model}" for kind in kinds for model in models} == {"validate", *last}
    member = checkout.parts_of("member@ensemble-dover")
    assert {*member.makers} == {"train@dover", "encode@dover", "prompts@dover"}
    copies = {f"checkpoints/ensemble/members/{model}" for model in ("lite", "dover")}
    ensemble = checkout.parts_of("ensemble@ensemble")
    assert {*ensemble.makers} == {"member@ensemble-lite", "member@ensemble-dover"}
    assert {*ensemble.inputs} == copies and ensemble.outputs == ("checkpoints/ensemble/model.json",)
    evaluate = checkout.parts_of("evaluate-ensemble@ensemble")
    assert {*evaluate.inputs} >= {*copies, "checkpoints/ensemble/model.json", "cache/prompts/lite"}
    assert "checkpoints/ensemble/members" not in {*evaluate.code, *checkout.code_paths()}
