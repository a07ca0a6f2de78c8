"""What a model measures and does not learn by gradients.

Before training, on the training clips: standardisation, and the bridge's level. After it, with the best epoch's
weights: the forests on the training clips; how much judges and forests count, and the calibration, on the val clips,
which none of them was taught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from qualivision.cache import CacheError
from qualivision.labels import MOS_MAX, MOS_MIN
from qualivision.models.bridge import class_phrases
from qualivision.models.forest import Forest
from qualivision.models.quality import (
    ALIGNMENT,
    ASPECTS,
    BRIDGE_ALONE,
    READ_ASPECTS,
    bounded,
    faults_to_learn,
    logits_of,
)
from qualivision.training.familiarity import fit_familiarity
from qualivision.training.mixing import fit_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torch import Tensor

    from qualivision.models.quality import QualityModel
    from qualivision.training.data import Batch, ClipSet

    Floats = npt.NDArray[np.floating[Any]]

TREES = 300
FOREST_CLIPS = 300
"""From so many training clips on, forests of their own are better than a start's."""
LEAF = 3
"""Clips in a leaf, at least."""
SHARE_OF_FEATURES = 0.33
WEIGHT_OF_FAULTS = 0.5
"""MOS that a fault takes, against logits of the rating, in what splits trees."""
SHRINK_BRIDGE = 30.0
"""The bridge is drawn to no part beside the match as by so many clips on which it says nothing."""
SHRINK_CALIBRATION = 10.0
"""The calibration is drawn to the identity, or the start's, as by so many clips that are right already."""


def measure_before(model: QualityModel, train_set: ClipSet) -> None:
    """Fit what depends on the training clips alone. Raises CacheError without the phrases that the bridge needs."""
    rows = range(len(train_set))
    first, *others = model.judges
    first.encoder.fit(train_set.activations(row) for row in rows)
    for judge in others:
        judge.encoder.load_state_dict(_buffers(first.encoder), strict=False)
    if model.bridge is not None:
        classes = torch.stack([train_set.activations(row)["classes"] for row in rows])
        if missing := [phrase for phrase in class_phrases() if phrase not in train_set.embeddings]:
            raise CacheError(f"{missing[0]!r}: is not in the prompt cache; run `qualivision prompts`")
        names = torch.from_numpy(np.stack([train_set.embeddings[phrase] for phrase in class_phrases()]))
        model.bridge.fit(names, classes, train_set.text)


def _buffers(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.named_buffers() if not name.startswith("frozen.")}


@torch.no_grad()
def measure_after(
    model: QualityModel, train_set: ClipSet, val_set: ClipSet, *, seed: int, batch_size: int, keep_shares: bool = False
) -> None:
    """Fit the forests, what is near, the bridge's part, the shares of judges and forests, and the calibration.

    A model that has forests already brought them from its start; they stay, unless there are clips enough for new ones.

    Args:
        model: with the weights of the best epoch; on any device.
        train_set, val_set: what the forests learn from, and what the rest is fitted on.
        seed: of the forests.
        batch_size: clips at once.
        keep_shares: val has too few clips to fit on: the start's shares and bridge stay, and the calibration is fitted
            on the training clips too, which a start that is pulled back does not know by heart.
    """
    model.eval()
    if not model.forests or len(train_set) >= FOREST_CLIPS:
        model.forests = cast("list[Forest]", nn.ModuleList(fit_forests(model, train_set, seed, batch_size)))
    fit_familiarity(model, train_set, val_set, batch_size=batch_size)
    model.doubt.fill_(1.0)
    if not keep_shares:
        model.bridge_gain.fill_(_fit_bridge(model, val_set, batch_size))
        model.mixture.copy_(_fit_shares(model, val_set, batch_size))
    before = model.calibration.slope.tolist(), model.calibration.offset.tolist()
    model.calibration.reset()
    clips = [val_set, train_set] if keep_shares else [val_set]
    rated = torch.cat([part.mos for part in clips]).double().numpy()
    batches = [batch for part in clips for batch in _batches(model, part, batch_size)]
    found = torch.cat([model.from_stem(b.activations, model.embed(b.prompts, b.text)).mos for b in batches])
    mos = found.double().cpu().numpy()
    for place, start in enumerate(zip(*before, strict=True)):
        slope, offset = fit_calibration(mos[:, place], rated[:, place], start=start)
        model.calibration.slope[place], model.calibration.offset[place] = slope, offset


def _fit_shares(model: QualityModel, clips: ClipSet, batch_size: int) -> Tensor:
    """How much each judge and the forests count in each aspect; see `QualityModel.mixture`."""
    judged, forest = _members(model, clips, batch_size)
    members, rated = torch.cat((judged, forest.unsqueeze(0))), clips.mos.numpy()
    shares = torch.zeros(model.mixture.shape)
    for aspect in range(len(ASPECTS)):
        able = members[:, :, aspect].isfinite().all(1)
        one = slice(aspect, aspect + 1)
        shares[able, aspect] = torch.from_numpy(fit_weights(members[able, :, one].numpy(), rated[:, one])[:, 0]).float()
    return shares


def _fit_bridge(model: QualityModel, clips: ClipSet, batch_size: int) -> float:
    """How many logits a deviation of the bridge is worth beside the match, on clips of the training clips' kind."""
    if model.bridge is None:
        return 0.0
    match, known = [], []
    for batch in _batches(model, clips, batch_size):
        text = model.embed(batch.prompts, batch.text)
        own = [judge.match(judge.see(batch.activations).content, text) * judge.head.own_scale for judge in model.judges]
        match.append(torch.stack(own).mean(0))
        known.append(model.bridge(batch.activations["classes"], text).diagonal())
    rated = clips.mos[:, ALIGNMENT].double().numpy()
    found = [torch.cat(part).double().cpu().numpy() for part in (match, known)]
    # A slope and a level of their own, so that the bridge is asked for nothing that the calibration gives; as by
    # `SHRINK_BRIDGE` more clips on which it says nothing.
    logits = torch.logit((torch.from_numpy(rated) - MOS_MIN) / (MOS_MAX - MOS_MIN), eps=0.05).numpy()
    columns = np.stack([part - part.mean() for part in found], 1)
    penalty = np.diag([0.0, SHRINK_BRIDGE * columns[:, 1].var()])
    _, gain = np.linalg.lstsq(columns.T @ columns + penalty, columns.T @ (logits - logits.mean()), rcond=None)[0]
    return float(np.clip(gain, 0.0, BRIDGE_ALONE))


def fit_forests(model: QualityModel, train_set: ClipSet, seed: int, batch_size: int) -> list[Forest]:
    """The forest of each of `READ_ASPECTS`, and what is usual; none where the encoder has nothing for them.

    Where it is known which faults the clips have, that decides on the splits too: a few hundred ratings say less. What
    the leaves hold is the ratings' either way. What is measured has been taken from these, and decides on no split.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    found, apart = [], []
    for batch in _batches(model, train_set, batch_size):
        if (measured := model.encoder.measured(batch.activations)) is None:
            return []
        found.append(measured)
        # What a measured fault takes is taken afterwards: the forests learn the rest.
        faults, rated = model.encoder.faults(batch.activations), logits_of(batch.mos[:, : len(ASPECTS)])
        apart.append(rated if faults is None else rated + faults)
    rest = torch.cat(apart).cpu()
    model.usual.copy_(rest.mean(0))
    forests, kinds_of = [], faults_to_learn(model.encoder.takes)
    for each, place, kinds in zip(zip(*found, strict=True), READ_ASPECTS, kinds_of, strict=True):
        fitted = ExtraTreesRegressor(
            TREES, min_samples_leaf=LEAF, max_features=SHARE_OF_FEATURES, n_jobs=-1, random_state=seed
        )
        known = train_set.faults[:, list(kinds)]
        usual = known.nanmean(0).nan_to_num()  # a clip of which nothing is known speaks for no split
        targets = torch.cat((rest[:, [place]], WEIGHT_OF_FAULTS * torch.where(known.isnan(), usual, known)), 1)
        fitted.fit(torch.cat(each).cpu().numpy(), targets.numpy())
        forests.append(Forest.of(fitted).to(model.mixture.device))
    return forests


def fit_calibration(predicted: Floats, rated: Floats, start: tuple[float, float] = (1.0, 0.0)) -> tuple[float, float]:
    """Slope, above 0, and offset of the logits of one dimension, with the least squared error; see `Calibration`.

    Args:
        predicted, rated: (N,) MOS, not calibrated and rated.
        start: slope and offset that the fit is drawn to; by default those of the identity.
    """
    from scipy.optimize import least_squares

    logits = torch.logit((torch.from_numpy(predicted) - MOS_MIN) / (MOS_MAX - MOS_MIN), eps=1e-4)
    typical = max(float(np.std(rated)), 0.1)
    drawn = np.sqrt(SHRINK_CALIBRATION) * typical

    def errors(values: Floats) -> Floats:
        found = bounded(logits * (start[0] * float(np.exp(values[0]))) + (start[1] + float(values[1]))).numpy()
        return np.concatenate((found - rated, drawn * values))

    slope, offset = least_squares(errors, np.zeros(2)).x
    return start[0] * float(np.exp(slope)), start[1] + float(offset)


def _members(model: QualityModel, clips: ClipSet, batch_size: int) -> tuple[Tensor, Tensor]:
    """(judges, N, 4) and (N, 4), NaN where a forest says nothing: MOS of the aspects by each of them, on the CPU."""
    judged, forest = [], []
    for batch in _batches(model, clips, batch_size):
        each = model.judged(batch.activations, model.embed(batch.prompts, batch.text))
        judged.append(each.aspects.cpu())
        forest.append(torch.full_like(judged[-1][0], torch.nan) if each.forest is None else each.forest.cpu())
    return torch.cat(judged, 1), torch.cat(forest)


def _batches(model: QualityModel, clips: ClipSet, batch_size: int) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for start in range(0, len(clips), batch_size):
        yield clips.collate(list(range(start, min(start + batch_size, len(clips))))).to(device)
