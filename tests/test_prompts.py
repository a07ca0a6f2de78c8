"""Prompts to embeddings: the encoder that comes along, and a cache that encodes each prompt once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qualivision import prompts
from qualivision.cache import CacheError
from qualivision.labels import SPLITS, labels_path, other_prompts_path
from qualivision.models.bridge import class_phrases
from qualivision.prompts import MINILM, PromptCache, PromptEncoder, PromptError
from qualivision.stages import prompts as stage


@pytest.fixture
def encoded(monkeypatch):
    """What is encoded, call by call, by an encoder whose vectors tell prompts and encoders apart."""
    calls = []

    class Encoder:
        def __init__(self, name):
            self.name = name

        def encode(self, given):
            calls.append(list(given))
            return np.array([[len(prompt), sum(map(ord, prompt)), len(self.name)] for prompt in given], np.float32)

    monkeypatch.setattr(prompts, "PromptEncoder", Encoder)
    return calls


def test_only_new_prompts_are_encoded(tmp_path, encoded):
    cache = PromptCache(tmp_path, "small")
    assert cache.fill(["a dog", "a cat", "a dog"]) == 2
    assert cache.fill(["a dog", "a cat", "a bird", "Ein Käfer läuft 🐞"]) == 2
    assert cache.fill(["a dog", "a cat", "a bird", "Ein Käfer läuft 🐞"]) == 0
    assert encoded == [["a cat", "a dog"], ["Ein Käfer läuft 🐞", "a bird"]]
    read = PromptCache(tmp_path, "small").read()
    assert set(read) == {"a dog", "a cat", "a bird", "Ein Käfer läuft 🐞"}
    for prompt, vector in read.items():
        assert vector.tolist() == [len(prompt), sum(map(ord, prompt)), len("small")]


@pytest.mark.parametrize("model", ["lite", "dover"])
def test_the_stage_embeds_the_prompts_those_without_a_clip_and_what_the_model_wants_beside(
    tmp_path, encoded, monkeypatch, model
):
    monkeypatch.chdir(tmp_path)
    params = (Path(__file__).parents[1] / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("models: [lite]", "models: [lite, dover]", 1))
    for split in SPLITS:
        path = labels_path(Path("data"), split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"video_name,Prompt\nA_1.mp4,a {split} dog\n")
    other_prompts_path(Path("data"), "train").write_text('Prompt,asks\na red ball,"{""subject"": ""ball""}"\n')
    said = stage.run(model)
    wanted = {"a train dog", "a val dog", "a test dog", "a red ball", *(class_phrases() if model == "lite" else ())}
    assert {prompt for call in encoded for prompt in call} == wanted
    assert said.startswith(f"prompts {model}: {len(wanted)} embedded, 0 were there")


def test_prompts_that_are_no_longer_there_are_dropped(tmp_path, encoded):
    cache = PromptCache(tmp_path, "small")
    cache.fill(["a", "b", "c"])
    before = cache.read()["b"]
    assert cache.fill(["b"]) == 0
    assert list(cache.read()) == ["b"]
    np.testing.assert_array_equal(cache.read()["b"], before)
    assert len(encoded) == 1


def test_embeddings_of_another_encoder_are_refused_and_made_again(tmp_path, encoded):
    PromptCache(tmp_path, "small").fill(["a"])
    other = PromptCache(tmp_path, "another")
    with pytest.raises(CacheError, match="made by small, not another; run `qualivision prompts`"):
        other.read()
    assert other.fill(["a"]) == 1
    assert other.read()["a"][2] == len("another")


def test_a_missing_cache_names_the_stage(tmp_path):
    with pytest.raises(CacheError, match=r"prompts\.safetensors: no such file; run `qualivision prompts`"):
        PromptCache(tmp_path, "small").read()


def test_every_altered_byte_is_noticed_and_mended_by_filling(tmp_path, encoded):
    cache = PromptCache(tmp_path, "small")
    cache.fill(["a", "b"])
    whole = cache.path.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0xFF
        cache.path.write_bytes(altered)
        with pytest.raises(CacheError, match="run `qualivision prompts`"):
            cache.read()
    assert cache.fill(["a", "b"]) == 2
    assert cache.path.read_bytes() == whole


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.numpy import save_file

    cache = PromptCache(tmp_path, "small")
    save_file({"embeddings": np.zeros((1, 3), np.float32)}, cache.path)
    with pytest.raises(CacheError, match="run `qualivision prompts`"):
        cache.read()


@pytest.fixture(scope="module")
def minilm() -> PromptEncoder:
    return PromptEncoder(MINILM)


def test_embeddings_have_length_one_and_384_channels(minilm):
    vectors = minilm.encode(["a cat runs", "a dog sleeps", ""])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_paraphrase_is_nearer_than_another_prompt(minilm):
    prompt, paraphrase, other = minilm.encode(
        ["A cat is running on the grass", "A kitty runs across a lawn", "A city skyline at night"]
    )
    assert prompt @ paraphrase > prompt @ other + 0.2


def test_an_embedding_does_not_depend_on_the_prompts_beside_it(minilm):
    alone = minilm.encode(["a cat"])[0]
    beside = minilm.encode(["a cat", "a dog runs over the whole wide meadow with a ball in its mouth " * 4])[0]
    np.testing.assert_allclose(alone, beside, atol=1e-6)


def test_what_comes_along_embeds_as_its_library_does_from_a_folder(minilm):
    given = ["a cat runs", "", "Ein Käfer läuft 🐞 über 桌子", "naïve café", "word " * 400, "x" * 600, *"abcdef" * 7]
    folder = PromptEncoder(str(prompts._packaged()))
    np.testing.assert_allclose(minilm.encode(given), folder.encode(given), atol=1e-6)
    assert minilm.encode([]).shape == (0, 384)


@pytest.mark.parametrize("kind", ["unknown name", "no folder", "empty folder", "damaged weights", "damaged package"])
def test_an_encoder_that_can_not_be_loaded_names_the_way_out_in_one_line(tmp_path, monkeypatch, kind):
    name = str(tmp_path / "encoder")
    match kind:
        case "unknown name":
            name = "nobody/no-such-encoder"
        case "empty folder":
            (tmp_path / "encoder").mkdir()
        case "damaged weights":
            import shutil

            shutil.copytree(prompts._packaged(), name)
            weights = tmp_path / "encoder" / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "damaged package":
            name = MINILM
            monkeypatch.setattr(prompts, "_packaged", lambda: tmp_path / "encoder")
    with pytest.raises(PromptError, match=r"can't be loaded .*set text\.encoder in params\.yaml to all-Min") as refused:
        PromptEncoder(name)
    assert repr(name) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
