"""What is measured around training: shares of judges and forests, and calibration; and that a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_models import (
    TEXT_WIDTH,
    DataSet,
    made_up_activations,
    made_up_text,
    network,
    train_settings,
    write_checkpoint,
    write_data_set,
)
from test_training import interrupt, run, trainer

from qualivision.cache import CacheError
from qualivision.labels import DIMENSIONS, FAULTS, MOS_MAX, MOS_MIN
from qualivision.models.bridge import class_phrases
from qualivision.models.factory import build_model
from qualivision.models.faults import MEASURED
from qualivision.models.quality import (
    ALIGNMENT,
    ASPECTS,
    READ_ASPECTS,
    Calibration,
    QualityModel,
    bounded,
    faults_to_learn,
    logits_of,
)
from qualivision.training import measuring
from qualivision.training.checkpoint import load_checkpoint, read_card, save_checkpoint, trained_tensors
from qualivision.training.data import ClipSet
from qualivision.training.measuring import fit_calibration, measure_after, measure_before

pytestmark = pytest.mark.usefixtures("few_trees")

TRADITIONAL = ASPECTS.index("Traditional")
FIRST = torch.tensor([places[0] for places in faults_to_learn(MEASURED)])
"""Of the faults of each aspect that are learned."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("data"), train=24, val=30)


def judged_model(judges: int = 2) -> QualityModel:
    torch.manual_seed(0)
    return build_model("lite", network().model_copy(update={"judges": judges}), TEXT_WIDTH)


@pytest.fixture
def measured(data) -> QualityModel:
    """Two judges that have learned nothing, and forests."""
    model, train_set = judged_model(), data.clips("train")
    measure_before(model, train_set)
    measure_after(model, train_set, data.clips("val"), seed=0, batch_size=8)
    return model


def scored(model: QualityModel, clips: ClipSet) -> torch.Tensor:
    batch = clips.collate(list(range(len(clips))))
    with torch.no_grad():
        return model.from_stem(batch.activations, batch.text).mos


# Calibration


def calibrated(slope: float, offset: float) -> Calibration:
    calibration = Calibration(1)
    calibration.slope.fill_(slope)
    calibration.offset.fill_(offset)
    return calibration


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.3, 0.8), (2.5, -1.0), (1.0, 3.0)])
def test_calibration_rises_strictly_and_stays_on_the_scale(slope, offset):
    mos = torch.linspace(1.01, 4.99, 400).unsqueeze(1)
    found = calibrated(slope, offset)(mos)
    assert (found[1:] > found[:-1]).all()
    assert found.min() >= MOS_MIN and found.max() <= MOS_MAX
    ends = calibrated(slope, offset)(torch.tensor([[0.0], [1.0], [5.0], [6.0]]))
    assert ((ends >= MOS_MIN) & (ends <= MOS_MAX)).all()


def test_calibration_is_the_identity_at_first_and_after_a_reset():
    mos = torch.linspace(1.01, 4.99, 50).unsqueeze(1)
    assert torch.allclose(Calibration(1)(mos), mos, atol=1e-4)
    bent = calibrated(0.4, -1.0)
    assert (bent(mos) - mos).abs().max() > 0.5
    bent.reset()
    assert torch.allclose(bent(mos), mos, atol=1e-4)


def distorted(clips: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are too bold and too low, and ratings with a little noise."""
    random = np.random.default_rng(seed)
    rated = random.uniform(1.3, 4.7, clips)
    logits = np.log((rated - 1) / (5 - rated))
    predicted = 1 + 4 / (1 + np.exp(-(logits - 0.5) / 0.6))
    return predicted, np.clip(rated + random.normal(0, 0.05, clips), 1, 5)


def test_a_known_distortion_is_found():
    slope, offset = fit_calibration(*distorted(2000))
    assert slope == pytest.approx(0.6, abs=0.02) and offset == pytest.approx(0.5, abs=0.02)


def test_calibration_brings_predictions_nearer_and_keeps_their_order():
    predicted, rated = distorted(80)
    mended = calibrated(*fit_calibration(predicted, rated))(torch.from_numpy(predicted).unsqueeze(1))[:, 0].numpy()
    assert np.mean((mended - rated) ** 2) < 0.3 * np.mean((predicted - rated) ** 2)
    assert spearmanr(mended, predicted).statistic == pytest.approx(1.0)


def test_few_clips_leave_calibration_near_the_identity():
    away = []
    for clips in (5, 30, 1000):
        each = [fit_calibration(*distorted(clips, seed=seed)) for seed in range(10)]
        away.append(np.mean([abs(np.log(slope)) + abs(offset) for slope, offset in each]))
    assert away == sorted(away)
    assert away[0] < 0.35 * away[-1]


@pytest.mark.parametrize(
    ("predicted", "rated"),
    [(np.full(9, 3.0), np.linspace(1, 5, 9)), (np.linspace(1, 5, 9), np.full(9, 3.0)), (np.ones(9), np.full(9, 5.0))],
)
def test_constant_columns_give_a_finite_calibration_that_rises(predicted, rated):
    slope, offset = fit_calibration(predicted, rated)
    assert np.isfinite([slope, offset]).all() and slope > 0


# Judges


def test_several_judges_count_as_their_mean_before_anything_is_measured():
    model, activations, text = judged_model(3).eval(), made_up_activations(4), made_up_text(4)
    with torch.no_grad():
        found = model.from_stem(activations, text)
        judged = [judge.judge(judge.see(activations), text) for judge in model.judges]
        parts = torch.stack([aspects for aspects, _ in judged]).mean(0)
        overall = [j.head.overall(parts, fused.weights) for j, (_, fused) in zip(model.judges, judged, strict=True)]
    wanted = torch.cat((parts, torch.stack(overall).mean(0).unsqueeze(1)), 1)
    assert torch.allclose(found.mos, wanted, atol=1e-3)  # so near the ends is the calibration, before it is measured
    assert torch.allclose(found.aspect_weights, torch.stack([fused.weights for _, fused in judged]).mean(0))
    assert not torch.allclose(judged[0][0], judged[1][0]), "they differ by their seed"


def test_judges_share_what_is_measured_before_training(data):
    model = judged_model(3)
    measure_before(model, data.clips("train"))
    first = measuring._buffers(model.judges[0].encoder)
    assert first and (first["image_norm.mean"] != 0).any()
    for judge in model.judges[1:]:
        assert all(torch.equal(first[name], value) for name, value in measuring._buffers(judge.encoder).items())


def test_judges_share_one_frozen_stem_and_a_checkpoint_holds_none_of_it():
    from small_models import real_stem

    model = build_model("lite", network().model_copy(update={"judges": 2}), TEXT_WIDTH, stem=real_stem())
    assert all(judge.encoder.frozen is real_stem() for judge in model.judges)
    assert not [name for name in trained_tensors(model) if "frozen" in name]


def test_a_phrase_of_the_bridge_that_nobody_embedded_is_named(data):
    clips = data.clips("train")
    lacking = class_phrases()[500]
    clips.embeddings = {phrase: value for phrase, value in data.embeddings.items() if phrase != lacking}
    with pytest.raises(CacheError, match=rf"'{lacking}': is not in the prompt cache; run `qualivision prompts`"):
        measure_before(judged_model(), clips)


# Forests


def test_known_faults_decide_on_the_splits_and_the_leaves_hold_the_ratings(data, monkeypatch):
    """Ratings that are hardly more than noise, of clips whose one fault follows from what is seen."""
    monkeypatch.setattr(measuring, "TREES", 40)
    train_set, random = data.clips("train"), torch.Generator().manual_seed(0)
    model = judged_model()
    measure_before(model, train_set)
    batch = train_set.collate(list(range(len(train_set))))
    fault = 3.0 * (batch.activations["statistics"][:, :, 0].mean(1) < 0)  # what `write_data_set` made of the quality
    train_set.mos = (4 - fault.unsqueeze(1) + 1.5 * torch.randn(train_set.mos.shape, generator=random)).clamp(1, 5)
    features, truth = model.encoder.measured(batch.activations), logits_of(4 - fault)

    def found(known: torch.Tensor) -> torch.Tensor:
        train_set.faults = known
        forests = measuring.fit_forests(model, train_set, 0, 8)
        return torch.stack([forest(given) for forest, given in zip(forests, features, strict=True)])

    nothing = torch.full((len(train_set), len(FAULTS)), torch.nan)
    is_first = torch.isin(torch.arange(len(FAULTS)), FIRST)
    without, told = found(nothing), found(torch.where(is_first, fault.unsqueeze(1), 0.0))
    assert torch.equal(without, found(torch.zeros_like(nothing))), "no clip has one: the same trees"
    halves = told[:, fault > 0].mean(1), told[:, fault == 0].mean(1)
    for place, aspect in enumerate(READ_ASPECTS):
        # The rating of a leaf's clips, and not what is known of them: its mean is that of the ratings.
        rated = logits_of(train_set.mos[:, aspect]) + model.encoder.faults(batch.activations)[:, aspect]
        assert told[place].mean() == pytest.approx(float(rated.mean()), abs=0.02)
        assert halves[1][place] > halves[0][place]
        errors = [(each[place] - each[place].mean() - truth + truth.mean()).square().mean() for each in (told, without)]
        assert errors[0] < errors[1]


def test_what_is_measured_decides_on_no_split(data):
    train_set, model = data.clips("train"), judged_model()
    measure_before(model, train_set)
    train_set.faults = torch.zeros(len(train_set), len(FAULTS))
    before = measuring.fit_forests(model, train_set, 0, 8)
    taken = [place for place, kind in enumerate(FAULTS) if kind in MEASURED]
    train_set.faults[:, taken] = torch.rand(len(train_set), len(taken), generator=torch.Generator().manual_seed(0))
    after = measuring.fit_forests(model, train_set, 0, 8)
    assert all(torch.equal(one.threshold, other.threshold) for one, other in zip(before, after, strict=True))
    train_set.faults[:, FIRST] = 4 * torch.rand(len(train_set), len(FIRST), generator=torch.Generator().manual_seed(0))
    others = measuring.fit_forests(model, train_set, 0, 8)
    assert not any(torch.equal(one.threshold, other.threshold) for one, other in zip(before, others, strict=True))


def test_clips_of_which_nothing_is_known_speak_for_no_split(data):
    train_set, model = data.clips("train"), judged_model()
    measure_before(model, train_set)
    assert train_set.faults.isnan().all()
    nothing = measuring.fit_forests(model, train_set, 0, 8)
    train_set.faults[::2] = 1.0  # all that is known is the same: being known must not be what trees split by
    half = measuring.fit_forests(model, train_set, 0, 8)
    assert all(torch.equal(one.threshold, other.threshold) for one, other in zip(nothing, half, strict=True))


# Mixture


def test_a_member_that_knows_nothing_gets_next_to_no_share(data, monkeypatch):
    val_set = data.clips("val")
    rated, random = val_set.mos[:, : len(ASPECTS)], torch.Generator().manual_seed(0)

    def members(model, clips, batch_size):
        good = rated + 0.2 * torch.randn(rated.shape, generator=random)
        useless = 3 + 2 * torch.randn(rated.shape, generator=random)
        forest = rated + 0.2 * torch.randn(rated.shape, generator=random)
        forest[:, ALIGNMENT] = torch.nan
        return torch.stack((good, useless)), forest

    monkeypatch.setattr(measuring, "_members", members)
    model = judged_model()
    measure_before(model, data.clips("train"))
    measure_after(model, data.clips("train"), val_set, seed=0, batch_size=8)
    assert torch.allclose(model.mixture.sum(0), torch.ones(len(ASPECTS)))
    assert (model.mixture[1] < 0.15).all(), "of two or three; ten clips speak for equal shares, and thirty against it"
    assert model.mixture[2, ALIGNMENT] == 0 and model.mixture[0, ALIGNMENT] > 0.85
    rest = [place for place in range(len(ASPECTS)) if place != ALIGNMENT]
    assert (model.mixture[[0, 2]][:, rest] > 0.2).all()


def test_a_prediction_is_the_mixture_of_judges_and_forests_calibrated(measured, data):
    clips = data.clips("val")
    batch = clips.collate([0, 5, 9])
    with torch.no_grad():
        text, seen = batch.text, [judge.see(batch.activations) for judge in measured.judges]
        distance = measured.familiarity(seen[0].content)
        joined, drawn = measured.joined(batch.activations, text, distance), measured.drawn(distance)
        each = zip(measured.judges, seen, strict=True)
        judged = [judge.judge(own, text, joined=joined, drawn=drawn) for judge, own in each]
        features, taken = (of(batch.activations) for of in (measured.encoder.measured, measured.encoder.faults))
        parts = torch.zeros(3, len(ASPECTS))
        for place in range(len(ASPECTS)):
            for share, (aspects, _) in zip(measured.mixture[:, place], judged, strict=False):
                parts[:, place] += share * aspects[:, place]
        for forest, given, place in zip(measured.forests, features, READ_ASPECTS, strict=True):
            parts[:, place] += measured.mixture[-1, place] * bounded(forest(given) - taken[:, place])
        overall = [j.head.overall(parts, own.weights) for j, (_, own) in zip(measured.judges, judged, strict=True)]
        wanted = torch.cat((parts, torch.stack(overall).mean(0).unsqueeze(1)), 1)
        for place in range(len(DIMENSIONS)):
            column = calibrated(measured.calibration.slope[place], measured.calibration.offset[place])
            wanted[:, place] = column(wanted[:, [place]])[:, 0]
        found = measured.from_stem(batch.activations, text).mos
    assert torch.allclose(found, wanted, atol=1e-4)
    assert measured.mixture[-1, ALIGNMENT] == 0 and (measured.mixture[-1] > 0).any()
    assert (measured.calibration.slope != 1).all()


def test_the_judges_are_not_asked_what_is_measured_of_a_strange_clip(measured, data):
    train_set = data.clips("train")
    everything = train_set.collate(list(range(len(train_set))))
    left = logits_of(everything.mos[:, : len(ASPECTS)]) + measured.encoder.faults(everything.activations)
    assert torch.allclose(measured.usual, left.mean(0), atol=1e-5)
    batch = data.clips("val").collate([0, 5, 9])
    taken = measured.encoder.faults(batch.activations)

    def learned(distance):
        """Logits by the judges at a distance, before what is measured is taken from them; and what the forests say."""
        measured.familiarity.forward = lambda content: torch.full((len(content),), distance)
        with torch.no_grad():
            judged = measured.judged(batch.activations, batch.text)
        return torch.logit((judged.aspects - MOS_MIN) / (MOS_MAX - MOS_MIN)) + taken, judged.forest

    found = [learned(distance) for distance in (0.9, 1.1, 1.31, 40.0, torch.nan)]
    near, between, far, farther, unknown = (judges for judges, _ in found)
    usual = torch.full_like(far[..., TRADITIONAL], measured.usual[TRADITIONAL])
    assert torch.allclose(far[..., TRADITIONAL], usual, atol=1e-3)
    assert torch.allclose(between[..., TRADITIONAL], (0.5 * (near + far))[..., TRADITIONAL], atol=1e-3)
    assert (near - far)[..., TRADITIONAL].abs().min() > 0.01, "there is something to draw"
    assert torch.equal(farther, far) and torch.equal(unknown, far), "no number is no reason to trust"
    others = [place for place in READ_ASPECTS if place != TRADITIONAL]
    assert torch.equal(near[..., others], far[..., others])
    assert all(torch.allclose(forest, found[0][1], equal_nan=True) for _, forest in found), "forests are not drawn"


def test_before_anything_is_measured_and_without_measured_faults_nothing_is_drawn(measured, data, monkeypatch):
    strange = torch.full((4,), 9.0)
    assert torch.equal(judged_model().drawn(strange).share, torch.ones(4, len(ASPECTS)))
    batch = data.clips("val").collate([0, 5])
    monkeypatch.setattr(type(measured.encoder), "faults", lambda self, activations: None)
    found = []
    for distance in (0.9, 9.0):
        measured.familiarity.forward = lambda content, at=distance: torch.full((len(content),), at)
        with torch.no_grad():
            found.append(measured.judged(batch.activations, batch.text))
    places = list(READ_ASPECTS)
    assert torch.equal(found[0].aspects[..., places], found[1].aspects[..., places])
    assert torch.equal(found[0].forest[:, places], found[1].forest[:, places])


def test_forests_teach_what_the_judges_have_not_learned(measured, data):
    """What the clips are rated for stands in their activations; the judges are untrained."""
    clips = data.clips("test")
    forest = measured.forest(clips.collate(list(range(len(clips)))).activations)
    places = list(READ_ASPECTS)
    assert forest[:, [ALIGNMENT]].isnan().all() and forest[:, places].isfinite().all()
    found, rated = scored(measured, clips), clips.mos
    assert np.mean([spearmanr(found[:, place], rated[:, place]).statistic for place in places]) > 0.4
    untrained = judged_model()
    measure_before(untrained, data.clips("train"))
    plain = scored(untrained, clips)
    assert (found - rated).square().mean() < 0.8 * (plain - rated).square().mean()


def test_measuring_takes_as_many_clips_at_once_as_training(data, monkeypatch):
    sizes, collate = [], ClipSet.collate

    def counted(self, rows):
        sizes.append(len(rows))
        return collate(self, rows)

    monkeypatch.setattr(ClipSet, "collate", counted)
    measure_after(judged_model(), data.clips("train"), data.clips("val"), seed=0, batch_size=7)
    assert max(sizes) == 7


def test_forests_are_put_where_the_model_is(data, monkeypatch):
    model = judged_model(1)
    monkeypatch.setattr(model.encoder, "measured", lambda activations: [torch.rand(8, width) for width in (3, 3, 2)])
    model.mixture = model.mixture.to("meta")  # the one device beside the CPU that there always is
    forests = measuring.fit_forests(model, data.clips("train"), 0, 8)
    assert [value.device.type for forest in forests for value in forest.buffers()] == ["meta"] * 12


def test_an_encoder_with_nothing_for_a_forest_has_none_and_is_not_asked_twice(data, monkeypatch):
    model, asked = judged_model(1), []
    monkeypatch.setattr(type(model.encoder), "measured", lambda self, activations: asked.append(1))
    assert measuring.fit_forests(model, data.clips("train"), 0, 4) == []
    assert len(asked) == 1


def test_equal_seeds_measure_alike_and_others_fit_other_forests(data):
    models = []
    for seed in (0, 0, 1):
        models.append(judged_model())
        measure_before(models[-1], data.clips("train"))
        measure_after(models[-1], data.clips("train"), data.clips("val"), seed=seed, batch_size=8)
    one, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["forests.0.threshold"][:, :3], other["forests.0.threshold"][:, :3])


# Kept


def test_a_checkpoint_keeps_judges_forests_mixture_and_calibration(measured, data, tmp_path):
    folder = write_checkpoint(tmp_path, text_width=TEXT_WIDTH)
    sizes = [forest.size for forest in measured.forests]
    card = replace(read_card(folder), network=network().model_copy(update={"judges": 2}), forests=sizes)
    save_checkpoint(folder, card, trained_tensors(measured))
    loaded, loaded_card = load_checkpoint(folder, with_stem=False)
    assert loaded_card == card and len(sizes) == len(READ_ASPECTS)
    assert torch.equal(scored(loaded, data.clips("val")), scored(measured, data.clips("val")))


def test_training_gives_forests_and_a_resumed_run_the_same_ones(data, tmp_path):
    settings = train_settings(epochs=2, average=0.5)
    straight = run(trainer(data, tmp_path / "straight", settings, judges=2))
    interrupt(trainer(data, tmp_path / "cut", settings, judges=2), after=2)
    torch.manual_seed(99)
    resumed = run(trainer(data, tmp_path / "cut", settings, judges=2), resume=True)
    assert (
        straight.forests
        == resumed.forests
        == [tuple(straight.tensors[f"forests.{number}.feature"].shape) for number in range(len(READ_ASPECTS))]
    )
    assert straight.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], value) for name, value in straight.tensors.items())
    assert {name.split(".")[1] for name in straight.tensors if name.startswith("judges.")} == {"0", "1"}
