"""What a registered model carries: where it came from, what it needs, its card, and an example that it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import write_checkpoint, write_evaluation, write_rated_videos

from qualivision import model_card, packaging
from qualivision.cache import file_hash
from qualivision.labels import DIMENSIONS
from qualivision.settings import FrameSpec
from qualivision.training.checkpoint import members_of
from qualivision.video import read_frames

PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"


def git(*arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments], check=True, capture_output=True
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    Path("data.dvc").write_text("outs:\n- md5: 1504d246698246b767ab6004b9ca5d5c.dir\n  path: data\n")
    git("add", "-A")
    git("commit", "-qm", "all")
    return tmp_path


def test_a_model_says_which_commit_lock_and_data_it_was_made_of(project):
    found = packaging.lineage(Path("data"))
    assert found.keys() == {"git_commit", "dvc_lock", "data"}
    assert len(found["git_commit"]) == 40 and int(found["git_commit"], 16)
    assert found["dvc_lock"] == file_hash(Path("dvc.lock"))
    assert found["data"] == "1504d246698246b767ab6004b9ca5d5c.dir"
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert packaging.lineage(Path("data"))["git_commit"] == f"{found['git_commit']}-dirty"


def test_outside_a_repository_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert packaging.lineage(Path("data")) == {}


@pytest.mark.parametrize("content", ["", "outs: []", "outs:\n- path: data\n", "{"])
def test_a_data_file_that_dvc_did_not_write_is_named(project, content):
    Path("data.dvc").write_text(content)
    with pytest.raises(packaging.PackagingError, match=r"data\.dvc: can't be read as DVC writes it"):
        packaging.lineage(Path("data"))


def test_every_requirement_is_pinned_and_every_package_that_serving_loads_is_among_them():
    names = {pin.partition("==")[0].lower() for pin in packaging.requirements()}
    assert all(pin.count("==") == 1 for pin in packaging.requirements())
    program = (
        "import sys, qualivision.decoding, qualivision.scoring, qualivision.training.checkpoint, qualivision.prompts,"
        " qualivision.models.factory, sentence_transformers, tokenizers, av, mlflow.pyfunc, pebble, safetensors.torch,"
        " xxhash;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    direct = {
        "accelerate": "accelerate", "av": "av", "mlflow": "mlflow", "numpy": "numpy", "pandas": "pandas",
        "pebble": "pebble", "pydantic": "pydantic", "safetensors": "safetensors", "timm": "timm", "torch": "torch",
        "sentence_transformers": "sentence-transformers", "torchvision": "torchvision", "xxhash": "xxhash",
        "filelock": "filelock", "tokenizers": "tokenizers", "yaml": "pyyaml",
    }  # fmt: skip
    assert {package for module, package in direct.items() if module in loaded} <= names
    assert not {"prefect", "dvc", "great_expectations", "matplotlib", "typer"} & loaded


def test_the_example_is_a_clip_that_can_be_read(tmp_path):
    request = packaging.example()
    clip = tmp_path / "clip"
    clip.write_bytes(request["video"][0])
    assert read_frames(clip, FrameSpec(count=8, height=32, width=32)).std() > 0
    assert len(request["video"][0]) < 10_000 and request["prompt"][0].strip()


@pytest.fixture
def carded(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    metrics = json.loads((write_evaluation(tmp_path / "report", checkpoint) / "metrics.json").read_text())
    write_rated_videos(tmp_path / "data", checkpoint, clips={"train": 4, "val": 2, "test": 3})
    return members_of(checkpoint), metrics, model_card.data_facts(tmp_path / "data")


def test_the_card_tells_data_metrics_with_intervals_baselines_and_limits(carded):
    lineage = {"git_commit": "c" * 40, "dvc_lock": "d" * 64, "data": "e" * 32 + ".dir"}
    text = model_card.as_markdown(*carded, lineage)
    assert carded[2] == [["train", "4", "2", "A", "yes"], ["val", "2", "1", "A", "yes"], ["test", "3", "2", "A", "yes"]]
    for said in ("| train | 4 | 2 | A | yes |", "0.400 to 0.700", "No-video SROCC", "c" * 40, "d" * 64, *DIMENSIONS):
        assert said in text
    assert all(limit in text for limit in model_card.LIMITS)
    assert len(text) < model_card.DESCRIPTION_CHARACTERS - 2000, "room is left for the verdict"


def test_the_card_as_a_page_fetches_nothing_and_escapes_what_the_data_says(carded):
    card, metrics, _ = carded
    facts = [["train", "4", "2", "<script>alert(1)</script>", "yes"]]
    page = model_card.as_html(card, metrics, facts, {"git_commit": "abc"}, {"predicted against rated MOS": PNG})
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert 'alt="predicted against rated MOS"' in page and "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_without_a_data_set_the_card_says_so(carded, tmp_path):
    card, metrics, _ = carded
    assert model_card.data_facts(tmp_path / "nowhere") == []
    assert "The data set was not at hand" in model_card.as_markdown(card, metrics, [], {})


def test_one_hash_names_all_files_by_name_and_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = packaging.folder_hash(tmp_path)
    (tmp_path / "registered_model_meta").write_text("MLflow's")
    assert packaging.folder_hash(tmp_path) == before
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = packaging.folder_hash(tmp_path)
    (tmp_path / "a" / "y").write_text("2")
    assert len({before, renamed, packaging.folder_hash(tmp_path)}) == 3
