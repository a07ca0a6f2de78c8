"""The training loop: one for every model, on `accelerate`.

Owns epochs, steps, validation, early stopping and going on after an interruption. What is learned from comes as
`ClipSet`, what comes out is a `Trained`; where a checkpoint or a metric goes is the caller's business.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from qualivision.cache import write_atomically
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS
from qualivision.training.checkpoint import load_trained, trained_tensors
from qualivision.training.losses import (
    AdaptiveWeights,
    alignment_loss,
    correlation_loss,
    ranking_loss,
    regression_loss,
    scale_aware_loss,
)
from qualivision.training.optimizer import make_optimizer, make_schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from qualivision.models.quality import QualityModel
    from qualivision.progress import Advance
    from qualivision.settings import TrainSettings
    from qualivision.training.data import Batch, ClipSet

    Metrics = dict[str, float]


class TrainingError(QualiVisionError):
    """Training can't go on: says at which step and with which clips."""


@dataclass
class Trained:
    """What training gives: the tensors of the best epoch, and how it went."""

    tensors: dict[str, Tensor]
    epoch: int
    """the best epoch, from 1"""
    score: float
    """its validation score: VQualA (mean of SROCC and PLCC), mean over the five dimensions"""
    history: list[Metrics]
    loss_weights: dict[str, float]


@dataclass
class _Progress:
    """What a resumed run needs beside tensors; everything here goes to `state.json`."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[Metrics] = field(default_factory=list)
    finished: bool = False


class Objective(nn.Module):
    """A model and its loss terms, as one module, so that several devices can share it."""

    def __init__(self, model: QualityModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss, unweighted."""
        seen = self.model.see(batch.activations)
        predicted = self.model.judge(seen, batch.text).mos.float()
        pairs = self.model.alignment_of_all_pairs(seen, batch.text).float()
        rated = batch.mos[:, DIMENSIONS.index("Alignment")]
        return {
            "regression": regression_loss(predicted, batch.mos),
            "ranking": ranking_loss(predicted, batch.mos),
            "scale": scale_aware_loss(predicted, batch.mos),
            "correlation": correlation_loss(predicted, batch.mos),
            "alignment": alignment_loss(pairs, rated, batch.known, batch.own),
        }


class Trainer:
    """Trains one model.

    Args:
        build: makes the model with fresh trained parts; called once the seed is set.
        train_set, val_set: what to learn from, and what to choose the best epoch on.
        settings: the model's `train` section.
        state: folder for what a resumed run needs.
        identity: names data and settings; a state of another identity is not gone on from.
    """

    def __init__(
        self,
        build: Callable[[], QualityModel],
        train_set: ClipSet,
        val_set: ClipSet,
        settings: TrainSettings,
        *,
        state: Path,
        identity: str,
    ) -> None:
        from accelerate import Accelerator

        torch.manual_seed(settings.seed)
        self.settings, self.train_set, self.val_set = settings, train_set, val_set
        self.state_folder, self.identity = state, identity
        self.accelerator = Accelerator(
            mixed_precision=settings.precision, gradient_accumulation_steps=settings.accumulate
        )
        self.order = torch.Generator()
        loader = DataLoader(
            train_set,
            batch_size=min(settings.batch_size, len(train_set)),
            shuffle=True,
            drop_last=True,
            generator=self.order,
            collate_fn=train_set.collate,
        )
        self.model = build()
        optimizer = make_optimizer(self.model, settings)
        # The loader too: accelerate then steps at the end of an epoch, however few batches have been accumulated, and
        # no gradient waits for the next epoch, where a resumed run would lack it.
        self.averaged = build().to(self.accelerator.device)
        self.objective, self.optimizer, self.loader = self.accelerator.prepare(Objective(self.model), optimizer, loader)
        steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.schedule = make_schedule(
            optimizer, warmup_steps=settings.warmup_steps, total_steps=steps_per_epoch * settings.epochs
        )
        self.weights = AdaptiveWeights(settings.loss)
        self.progress = _Progress()
        self.best: dict[str, Tensor] = {}

    def run(self, *, resume: bool, log: Callable[[int, Metrics], None], advance: Advance) -> Trained:
        """Train to the last epoch, or until the score has not risen for `patience` epochs of the second half.

        Args:
            resume: go on from an interrupted run of the same data and settings, if there is one.
            log: gets each epoch's number and metrics.
            advance: told of the progress, in epochs.
        Raises:
            TrainingError: a rating, an activation or the loss is no number, or there are too few clips.
        """
        for split, clips, least in (("train", self.train_set, 2), ("val", self.val_set, 3)):
            _check(clips, split, least)
        if not (resume and self._restore()):
            self.model.encoder.fit(self.train_set.activations(row) for row in range(len(self.train_set)))
            load_trained(self.averaged, trained_tensors(self.model), self.state_folder)
        progress, settings = self.progress, self.settings
        while not progress.finished:
            started = time.perf_counter()
            metrics = self._epoch()
            seconds = time.perf_counter() - started
            progress.epoch += 1
            metrics |= self._validate()
            progress.history.append(metrics)
            # The speed is logged only: what is stored follows from data and settings alone.
            seen = len(self.loader) * min(settings.batch_size, len(self.train_set))
            log(progress.epoch, metrics | {"clips_per_second": seen / seconds})
            advance(progress.epoch, settings.epochs)
            # Only epochs of the second half, when the rate has fallen: an early peak over a few prompts is luck.
            if progress.epoch > settings.epochs // 2 and metrics["val_score"] > progress.best_score:
                progress.best_score, progress.best_epoch = metrics["val_score"], progress.epoch
                self.best = {name: value.clone() for name, value in trained_tensors(self.averaged).items()}
            stalled = progress.epoch - max(progress.best_epoch, settings.epochs // 2) >= settings.patience
            progress.finished = stalled or progress.epoch >= settings.epochs
            self._save()
        return Trained(
            self.best, progress.best_epoch, progress.best_score, progress.history, dict(self.weights.current)
        )

    def _epoch(self) -> Metrics:
        self.objective.train()
        # Each epoch has random streams of its own, for the order and, on every device, for dropout: a resumed run needs
        # to restore none.
        seed = self.settings.seed * 100_003 + self.progress.epoch
        self.order.manual_seed(seed)
        torch.manual_seed(seed)
        sums: dict[str, float] = {}
        norms: list[float] = []
        for batch in self.loader:
            with self.accelerator.accumulate(self.objective):
                with self.accelerator.autocast():
                    terms = self.objective(batch.to(self.accelerator.device))
                loss = self.weights.total(terms)
                if not torch.isfinite(loss):
                    values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
                    raise TrainingError(
                        f"the loss is {loss.item()} at step {self.progress.step} ({values}); "
                        f"clips of that batch: {', '.join(batch.names)}"
                    )
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.settings.gradient_norm)
                    norms.append(float(norm))
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.schedule.step()
                    self.progress.step += 1
                    self._average()
                self.optimizer.zero_grad()
            for name, value in (terms | {"total": loss}).items():
                sums[name] = sums.get(name, 0.0) + value.item()
        means = {name: value / len(self.loader) for name, value in sums.items()}
        metrics = {f"loss_{name}": value for name, value in means.items()}
        metrics |= {f"weight_{name}": self.weights.current[name] for name in AdaptiveWeights.ADAPTING}
        self.weights.end_epoch(means)
        return metrics | {
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "gradient_norm": float(np.mean(norms)),
        }

    @torch.no_grad()
    def _average(self) -> None:
        """Draw the averaged model, which is validated and kept, to the trained one; young averages follow faster."""
        step = self.progress.step
        keep = min(self.settings.average, step / (10 + step))
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            if value.requires_grad:
                mean.lerp_(value, 1 - keep)

    def _validate(self) -> Metrics:
        from qualivision.evaluation.metrics import agreement

        predicted = predict(self.averaged, self.val_set, device=self.accelerator.device)
        if not (fine := np.isfinite(predicted).all(1)).all():
            raise TrainingError(
                f"after step {self.progress.step} the model predicts no number for val clips: "
                f"{_some(list(self.val_set.table['video_name'][~fine]))}; try a lower learning_rate"
            )
        rated = self.val_set.mos.numpy()
        metrics: Metrics = {}
        for column, dimension in enumerate(DIMENSIONS):
            found = agreement(predicted[:, column], rated[:, column])
            # A constant column has no correlation; as a choice between epochs it is the worst there is.
            metrics[f"val_{dimension}"] = -1.0 if found.vquala is None else found.vquala
        metrics["val_score"] = float(np.mean(list(metrics.values())))
        return metrics

    def _save(self) -> None:
        from safetensors.torch import save

        optimizer = self.optimizer.state_dict()
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"last.{name}": value for name, value in trained_tensors(self.model).items()}
        tensors |= {f"averaged.{name}": value for name, value in trained_tensors(self.averaged).items()}
        for number, slots in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{slot}": value.cpu().contiguous() for slot, value in slots.items()}
        values = {
            "identity": self.identity,
            "progress": self.progress.__dict__,
            "loss_weights": self.weights.state(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]],
        }
        # One file, so that it is never half new: the values travel in the header.
        header = {"state": json.dumps(values)}
        write_atomically(self.state_folder / STATE, save(tensors, metadata=header))

    def _restore(self) -> bool:
        """Go on from a saved state; False when there is none of this identity that is unfinished."""
        from safetensors import SafetensorError, safe_open

        path = self.state_folder / STATE
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                values: dict[str, Any] = json.loads(file.metadata()["state"])
                if values["identity"] != self.identity or values["progress"]["finished"]:
                    return False
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as err:
            raise TrainingError(f"{path}: can't be read ({err}); delete it, and training starts anew") from err
        self.progress = _Progress(**values["progress"])
        self.weights.restore(values["loss_weights"])
        self.best = _below(tensors, "best.")
        load_trained(self.model, _below(tensors, "last."), path)
        load_trained(self.averaged, _below(tensors, "averaged."), path)
        optimizer = self.optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = value
        groups = [
            group | {"params": old["params"]}
            for group, old in zip(values["groups"], optimizer["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.schedule.last_epoch = values["schedule"]["last_epoch"]
        return True


STATE = "state.safetensors"


def _check(clips: ClipSet, split: str, least: int) -> None:
    """Refuse what is no number before it spreads: one such clip would make the standardisation of all clips NaN."""
    if len(clips) < least:
        raise TrainingError(f"{split} has {len(clips)} clips; at least {least} are needed")
    names = list(clips.table["video_name"])
    unrated = [name for name, rated in zip(names, clips.mos.isfinite().all(1).tolist(), strict=True) if not rated]
    if unrated:
        raise TrainingError(f"{split}: a MOS is missing or no number for {_some(unrated)}")
    broken = [
        name
        for row, name in enumerate(names)
        if not all(value.isfinite().all() for value in (*clips.activations(row).values(), clips.text[row]))
    ]
    if broken:
        raise TrainingError(f"{split}: an activation or prompt embedding is no number for {_some(broken)}")


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def predict(
    model: QualityModel, clips: ClipSet, *, device: torch.device | str = "cpu", batch_size: int = 64
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Score the clips of a split from their cached activations: (N, 5) MOS, in the order of the table."""
    model.eval()
    rows = []
    for start in range(0, len(clips), batch_size):
        batch = clips.collate(list(range(start, min(start + batch_size, len(clips))))).to(torch.device(device))
        rows.append(model.from_stem(batch.activations, batch.text).mos.double().cpu())
    return torch.cat(rows).numpy()
