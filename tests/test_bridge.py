"""The bridge in a made-up space of words: the right prompt wins, whatever was seen in training."""

from __future__ import annotations

import pytest
import torch
from small_models import made_up_activations, made_up_text, small_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from qualivision.models.bridge import CLASSES, Bridge, class_phrases
from qualivision.models.quality import BRIDGE_ALONE

WIDTH = 48


def embeddings(seed: int = 0) -> torch.Tensor:
    """(CLASSES, WIDTH) of length 1: all share a direction, as sentences of one form do."""
    random = torch.Generator().manual_seed(seed)
    own = functional.normalize(torch.randn(CLASSES, WIDTH, generator=random), dim=1)
    return functional.normalize(own + 2 * functional.normalize(torch.ones(WIDTH), dim=0), dim=1)


def asking_for(names: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Prompts that are near to the names of classes, and not equal to them."""
    noise = torch.randn(len(kinds), WIDTH, generator=torch.Generator().manual_seed(1))
    return functional.normalize(names[kinds] + 0.04 * noise, dim=1)


def showing(kinds: torch.Tensor, *, sure: float = 0.7) -> torch.Tensor:
    """(N, CLASSES) probabilities: the rest is spread over all."""
    return sure * functional.one_hot(kinds, CLASSES).float() + (1 - sure) / CLASSES


@pytest.fixture
def fitted() -> Bridge:
    bridge, kinds = Bridge(WIDTH), torch.arange(0, 60, 2)
    names = embeddings()
    bridge.fit(names, showing(kinds), asking_for(names, kinds))
    return bridge


def test_the_prompt_that_asks_for_what_is_shown_wins_also_of_classes_that_no_clip_showed(fitted):
    kinds = torch.arange(500, 540)
    found = fitted(showing(kinds), asking_for(embeddings(), kinds))
    assert found.shape == (40, 40)
    assert (found.argmax(1) == torch.arange(40)).all() and (found.argmax(0) == torch.arange(40)).all()


def test_the_surer_the_network_is_the_better_the_clip_fits(fitted):
    kind = torch.tensor([7])
    found = [fitted(showing(kind, sure=sure), asking_for(embeddings(), kind)).item() for sure in (0.0, 0.1, 0.5, 0.9)]
    assert found == sorted(found) and found[-1] > found[0] + 1


def test_over_the_training_pairs_it_has_mean_nought_and_deviation_one(fitted):
    kinds = torch.arange(0, 60, 2)
    found = fitted(showing(kinds), asking_for(embeddings(), kinds))
    assert found.mean().item() == pytest.approx(0, abs=1e-4)
    assert found.std().item() == pytest.approx(1, abs=1e-4)


def test_fitting_again_forgets_the_last_level(fitted):
    before = {name: value.clone() for name, value in fitted.state_dict().items()}
    kinds, names = torch.arange(0, 60, 2), embeddings()
    fitted.fit(names, showing(kinds), asking_for(names, kinds))
    assert all(torch.equal(before[name], value) for name, value in fitted.state_dict().items())


def test_clips_that_all_fit_alike_give_finite_values():
    bridge = Bridge(WIDTH)
    bridge.fit(embeddings(), torch.full((4, CLASSES), 1 / CLASSES), embeddings()[:4])
    assert bridge(showing(torch.tensor([3])), embeddings()[:2]).isfinite().all()


def test_it_is_fitted_on_a_gpu_from_what_lies_in_main_memory():
    with FakeTensorMode():  # no values, but devices as if there were a GPU
        with torch.device("cuda"):
            bridge = Bridge(WIDTH)
        bridge.fit(torch.zeros(CLASSES, WIDTH), torch.zeros(4, CLASSES), torch.zeros(4, WIDTH))
        found = bridge(torch.zeros(2, CLASSES, device="cuda"), torch.zeros(3, WIDTH, device="cuda"))
    assert (found.shape, found.device.type) == ((2, 3), "cuda")


def test_it_learns_nothing_by_gradients(fitted):
    assert not list(fitted.parameters())


def test_phrases_name_the_classes_in_the_order_of_the_networks_outputs():
    from small_models import real_stem
    from torchvision.transforms.functional import to_tensor

    from qualivision.sample_data.pictures import subject_picture

    phrases = class_phrases()
    assert len(phrases) == CLASSES and all(phrase.startswith("a photo of a ") for phrase in phrases)
    cat = to_tensor(subject_picture("cat", None).convert("RGB").resize((160, 160)))
    with torch.no_grad():
        classes = real_stem()(cat.unsqueeze(1).expand(1, 3, 2, 160, 160))["classes"][0]
    assert " cat" in phrases[int(classes.argmax())]


def test_the_match_counts_where_clip_and_prompt_are_familiar_and_the_bridge_elsewhere():
    model, activations, text = small_model().eval(), made_up_activations(4), made_up_text(4)
    near, far = torch.full((4,), 0.9), torch.full((4,), 1.5)
    model.bridge_gain.fill_(0.25)
    model.prompts.forward = lambda prompts: torch.full((len(prompts),), 0.5)
    known = model.bridge(activations["classes"], text).diagonal()
    assert model.joined(activations, text, far).trust.tolist() == [1.0] * 4, "before anything is measured"
    model.doubt.fill_(1.0)
    familiar, strange = (model.joined(activations, text, distance) for distance in (near, far))
    assert familiar.trust.tolist() == [1.0] * 4 and torch.allclose(familiar.known, 0.25 * known)
    assert strange.trust.tolist() == [0.0] * 4 and torch.allclose(strange.known, BRIDGE_ALONE * known)
    unknown = model.joined(activations, text, torch.full((4,), torch.nan))
    assert unknown.trust.tolist() == [0.0] * 4, "no number is no reason to trust"
    model.prompts.forward = lambda prompts: torch.full((len(prompts),), 1.5)
    assert model.joined(activations, text, near).trust.tolist() == [0.0] * 4, "a strange prompt"
