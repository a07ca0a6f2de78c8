"""A checkpoint brings back the very same model, or says why it can't."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    FUSIONS,
    TEXT_WIDTH,
    made_up_activations,
    made_up_text,
    network,
    real_stem,
    small_model,
    write_checkpoint,
)

from qualivision.cache import file_hash
from qualivision.training import checkpoint
from qualivision.training.checkpoint import (
    CARD,
    WEIGHTS,
    CheckpointError,
    checkpoint_id,
    load_checkpoint,
    load_trained,
    read_card,
    save_checkpoint,
    trained_tensors,
)


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint", text_width=TEXT_WIDTH)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_round_trip_predicts_bit_for_bit_the_same(folder, fusion):
    model = small_model(fusion).eval()
    model.encoder.fit([{name: value[0] for name, value in made_up_activations(1).items()}])
    card = replace(read_card(folder), network=network(fusion))
    save_checkpoint(folder, card, trained_tensors(model))
    loaded, loaded_card = load_checkpoint(folder, with_stem=False)
    assert loaded_card == card
    assert not loaded.training
    with torch.no_grad():
        before, after = (m.from_stem(made_up_activations(3), made_up_text(3)) for m in (model, loaded))
    assert torch.equal(before.mos, after.mos)
    assert torch.equal(before.aspect_weights, after.aspect_weights)


def test_checkpoint_holds_no_tensor_of_the_frozen_stem(folder):
    model = small_model(stem=real_stem())
    save_checkpoint(folder, read_card(folder), trained_tensors(model))
    stored = load_file(folder / WEIGHTS)
    stem = {id(value) for value in real_stem().state_dict().values()}
    trained = {name for name, value in model.state_dict(keep_vars=True).items() if id(value) not in stem}
    assert not [name for name in stored if "frozen" in name]
    assert stored.keys() == {name for name in trained if checkpoint.FROZEN not in name}
    assert (folder / WEIGHTS).stat().st_size < 9e6, "the stem alone has 18 MB"


def test_checkpoint_of_a_model_with_stem_loads_with_and_without_it(folder):
    frames = torch.rand(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    with_stem, _ = load_checkpoint(folder, with_stem=True)
    without, _ = load_checkpoint(folder, with_stem=False)
    with torch.no_grad():
        whole = with_stem(frames, made_up_text(1)).mos
        parts = without.from_stem(with_stem.stem(frames), made_up_text(1)).mos
    assert torch.equal(whole, parts)


def test_card_names_no_path_of_this_machine(folder):
    text = (folder / CARD).read_text()
    assert "/" not in text and "\\" not in text
    assert json.loads(text)["name"] == "lite"


def test_saving_twice_gives_equal_bytes(folder, tmp_path):
    again = write_checkpoint(tmp_path / "again", text_width=TEXT_WIDTH)
    assert [file_hash(folder / name) for name in (WEIGHTS, CARD)] == [
        file_hash(again / name) for name in (WEIGHTS, CARD)
    ]


def test_checkpoint_is_named_by_its_tensors_and_its_card(folder, tmp_path):
    named = checkpoint_id(folder)
    assert named != checkpoint_id(write_checkpoint(tmp_path / "other", seed=1, text_width=TEXT_WIDTH))
    (folder / CARD).write_text(replace(read_card(folder), text_width=1).to_json())
    assert named != checkpoint_id(folder)


def test_another_stem_than_in_training_is_refused(folder):
    card = replace(read_card(folder), base_hash="0" * 64)
    (folder / CARD).write_text(card.to_json())
    with pytest.raises(
        CheckpointError, match=r"was trained on efficientnet\S+ with hash 000000000000, here is [0-9a-f]{12}; get"
    ):
        load_checkpoint(folder, with_stem=False)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda tensors: tensors.pop("judges.0.fusion.queries"), r"missing \['judges.0.fusion.queries'\]"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), r"unexpected \['more'\]"),
        (
            lambda tensors: tensors.update({"judges.0.encoder.frozen.mean": torch.zeros(1)}),
            "unexpected .'judges.0.encoder.frozen.mean'",
        ),
        (
            lambda tensors: tensors.update({"judges.0.fusion.queries": torch.zeros(1, 2)}),
            r"judges.0.fusion.queries \(1, 2\) for \(4, 16\)",
        ),
    ],
    ids=["missing", "extra", "stem", "shape"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(folder, harm, message):
    tensors = load_file(folder / WEIGHTS)
    harm(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder, with_stem=False)
    assert "train again" in str(caught.value)


def test_tensors_that_do_not_fit_change_nothing(folder):
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name: value + 1 for name, value in before.items()}
    del tensors["judges.0.fusion.queries"]
    with pytest.raises(CheckpointError):
        load_trained(model, tensors, folder)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_a_cut_weights_file_is_named(folder, left):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read"):
        load_checkpoint(folder, with_stem=False)


def test_a_missing_weights_file_is_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read"):
        load_checkpoint(folder, with_stem=False)


def test_a_folder_that_is_no_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint \(model.json is missing\); `dvc repro train` makes one"
    ):
        load_checkpoint(tmp_path, with_stem=False)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "{", '{"name": "lite"}', "\xff"],
)
def test_a_damaged_card_is_named(folder, content):
    (folder / CARD).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"model\.json: can't be read"):
        load_checkpoint(folder, with_stem=False)


@pytest.mark.parametrize(
    ("key", "value"), [("more", 1), ("frames", {"count": 4}), ("network", {"width": -1}), ("forests", [3])]
)
def test_a_card_with_values_of_another_version_is_named(folder, key, value):
    values = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(values | {key: value}))
    with pytest.raises(CheckpointError, match=r"model\.json: can't be read"):
        load_checkpoint(folder, with_stem=False)


def test_a_model_that_this_version_does_not_know_is_named(folder):
    (folder / CARD).write_text(replace(read_card(folder), name="grande").to_json())
    with pytest.raises(CheckpointError, match="is a 'grande' model; this version knows lite"):
        load_checkpoint(folder, with_stem=False)


def test_new_tensors_never_stand_under_an_old_card(folder, monkeypatch):
    card, tensors = read_card(folder), load_file(folder / WEIGHTS)
    written = checkpoint.write_atomically

    def killed_at_the_card(path, content):
        if path.name == CARD:
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", killed_at_the_card)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, card, {name: value + 1 for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_checkpoint(folder, with_stem=False)
