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
from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN
from qualivision.models.bridge import class_phrases
from qualivision.models.forest import Forest
from qualivision.models.quality import ASPECTS, FOREST_ASPECTS, bounded
from qualivision.training.mixing import fit_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torch import Tensor

    from qualivision.models.quality import QualityModel
    from qualivision.training.data import Batch, ClipSet

    Floats = npt.NDArray[np.floating[Any]]

TREES = 300
LEAF = 3
"""Clips in a leaf, at least."""
SHARE_OF_FEATURES = 0.33
SHRINK_CALIBRATION = 10.0
"""The calibration is drawn to the identity as by so many clips that are right already."""


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
def measure_after(model: QualityModel, train_set: ClipSet, val_set: ClipSet, *, seed: int, batch_size: int) -> None:
    """Fit the forests, the shares of judges and forests, and the calibration.

    Args:
        model: with the weights of the best epoch; on any device.
        train_set, val_set: what the forests learn from, and what the rest is fitted on.
        seed: of the forests.
        batch_size: clips at once.
    """
    model.eval()
    model.forests = cast("list[Forest]", nn.ModuleList(fit_forests(model, train_set, seed, batch_size)))
    rated = val_set.mos.numpy()
    judged, forest = _members(model, val_set, batch_size)
    members = torch.cat((judged, forest.unsqueeze(0)))
    shares = torch.zeros(model.mixture.shape)
    for aspect in range(len(ASPECTS)):
        able = members[:, :, aspect].isfinite().all(1)
        shares[able, aspect] = torch.from_numpy(
            fit_weights(members[able, :, aspect : aspect + 1].numpy(), rated[:, aspect : aspect + 1])[:, 0]
        ).float()
    model.mixture.copy_(shares)
    model.calibration.reset()
    batches = _batches(model, val_set, batch_size)
    mos = torch.cat([model.from_stem(b.activations, model.embed(b.prompts, b.text)).mos for b in batches])
    for place in range(len(DIMENSIONS)):
        slope, offset = fit_calibration(mos[:, place].double().cpu().numpy(), rated[:, place])
        model.calibration.slope[place], model.calibration.offset[place] = slope, offset


def fit_forests(model: QualityModel, train_set: ClipSet, seed: int, batch_size: int) -> list[Forest]:
    """The forest on pictures and the one on what changes in time; none where the encoder has nothing for them."""
    from sklearn.ensemble import ExtraTreesRegressor

    found = []
    for batch in _batches(model, train_set, batch_size):
        if (measured := model.encoder.measured(batch.activations)) is None:
            return []
        found.append(measured)
    forests = []
    for each, places in zip(zip(*found, strict=True), FOREST_ASPECTS, strict=True):
        fitted = ExtraTreesRegressor(
            TREES, min_samples_leaf=LEAF, max_features=SHARE_OF_FEATURES, n_jobs=-1, random_state=seed
        )
        targets = train_set.mos[:, places].numpy()
        fitted.fit(torch.cat(each).cpu().numpy(), targets if len(places) > 1 else targets[:, 0])
        forests.append(Forest.of(fitted).to(model.mixture.device))
    return forests


def fit_calibration(predicted: Floats, rated: Floats) -> tuple[float, float]:
    """Slope, above 0, and offset of the logits of one dimension, with the least squared error; see `Calibration`."""
    from scipy.optimize import least_squares

    logits = torch.logit((torch.from_numpy(predicted) - MOS_MIN) / (MOS_MAX - MOS_MIN), eps=1e-4)
    typical = max(float(np.std(rated)), 0.1)
    drawn = np.sqrt(SHRINK_CALIBRATION) * typical

    def errors(values: Floats) -> Floats:
        found = bounded(logits * float(np.exp(values[0])) + float(values[1])).numpy()
        return np.concatenate((found - rated, drawn * values))

    slope, offset = least_squares(errors, np.zeros(2)).x
    return float(np.exp(slope)), float(offset)


def _members(model: QualityModel, clips: ClipSet, batch_size: int) -> tuple[Tensor, Tensor]:
    """(judges, N, 4) and (N, 4), NaN where a forest says nothing: MOS of the aspects by each of them, on the CPU."""
    judged, forest = [], []
    for batch in _batches(model, clips, batch_size):
        text = model.embed(batch.prompts, batch.text)
        known = model.known(batch.activations, text).diagonal()
        each = [judge.judge(judge.see(batch.activations), text, known)[0] for judge in model.judges]
        judged.append(torch.stack(each).cpu())
        trees = model.forest(batch.activations)
        forest.append(torch.full_like(judged[-1][0], torch.nan) if trees is None else trees.cpu())
    return torch.cat(judged, 1), torch.cat(forest)


def _batches(model: QualityModel, clips: ClipSet, batch_size: int) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for start in range(0, len(clips), batch_size):
        yield clips.collate(list(range(start, min(start + batch_size, len(clips))))).to(device)
