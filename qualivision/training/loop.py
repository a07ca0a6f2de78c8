"""The training loop: one for every model, on `accelerate`.

Owns epochs, steps, validation, early stopping and going on after an interruption. What is learned from comes as
`ClipSet`, what comes out is a `Trained`; where a checkpoint or a metric goes is the caller's business.
"""

from __future__ import annotations

import copy
import json
import math
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from qualivision.cache import write_atomically
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS
from qualivision.training.checkpoint import CARD, load_trained, trained_tensors
from qualivision.training.losses import (
    AdaptiveWeights,
    alignment_loss,
    choice_loss,
    correlation_loss,
    fault_loss,
    ranking_loss,
    regression_loss,
    scale_aware_loss,
)
from qualivision.training.measuring import measure_after, measure_before
from qualivision.training.optimizer import make_optimizer, make_schedule
from qualivision.training.sharding import part_like, shard, whole
from qualivision.training.starting import CHOOSING_CLIPS, Pull, concordance, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from qualivision.models.quality import QualityModel, Seen
    from qualivision.progress import Advance
    from qualivision.settings import TrainSettings
    from qualivision.training.data import Batch, ClipSet
    from qualivision.training.starting import Start

    Metrics = dict[str, float]


class TrainingError(QualiVisionError):
    """Training can't go on: says at which step and with which clips."""


@dataclass
class Trained:
    """What training gives: the tensors of the best epoch, and how it went."""

    tensors: dict[str, Tensor]
    epoch: int
    """the best epoch, from 1; 0: the start as it is"""
    score: float
    """its validation score: VQualA (mean of SROCC and PLCC), mean over the five dimensions"""
    history: list[Metrics]
    loss_weights: dict[str, float]
    forests: list[tuple[int, int]]
    """trees, and the most nodes of one, of each forest among the tensors"""
    start_score: float | None = None
    """the validation score of the start, if there is one"""


@dataclass
class _Progress:
    """What a resumed run needs beside tensors; everything here goes to the header of `state.safetensors`."""

    epoch: int = 0
    batch: int = 0
    """batches of this epoch that are done"""
    sums: Metrics = field(default_factory=dict)
    """over these batches"""
    norms: list[float] = field(default_factory=list)
    """gradient norms of this epoch's steps"""
    step: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    start: Metrics = field(default_factory=dict)
    """the validation of what training started from"""
    history: list[Metrics] = field(default_factory=list)
    finished: bool = False


class Objective(nn.Module):
    """A model and its loss terms, as one module, so that several devices can share it.

    With several processes every term is that of all their clips together: each process holds its own, with a gradient,
    against the others', without one. The sum of the processes' gradients is that of one process with all the clips.
    """

    def __init__(self, model: QualityModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, window: list[Clips]) -> tuple[dict[str, Tensor], Clips]:
        """The loss.

        Args:
            batch: this process's clips.
            window: earlier clips of the same optimizer step; orders and correlations count them too.
        Returns:
            Each term, unweighted (of `alignment` and `faults` this process's share), and the clips of all processes as
            later batches of the step take them.
        """
        text = self.model.embed(batch.prompts, batch.text)
        every_text = torch.cat((_of_all(text), batch.others))
        taught = (batch.known.isfinite() & batch.own).any(1)
        mos = _of_all(batch.mos)
        judged = []
        terms: dict[str, Tensor] = {}
        for place, judge in enumerate(self.model.judges):
            seen = judge.see(batch.activations)
            aspects, fused = judge.judge(seen, text, taught=taught)
            predicted = torch.cat((aspects, judge.head.overall(aspects, fused.weights).unsqueeze(1)), 1).float()
            every = Clips(_of_all(predicted), mos)
            earlier = [Clips(clips.predicted[place], clips.mos) for clips in window]
            pairs = judge.alignment_of_all_pairs(seen, every_text).float()
            known = batch.faults[:, judge.head.faults]
            faults = fault_loss(judge.head.fault_losses(fused).float(), known) * _share(known.isfinite().all(1))
            for name, value in (_terms(every, earlier, seen, pairs, batch) | {"faults": faults}).items():
                terms[name] = terms.get(name, torch.zeros(())) + value / len(self.model.judges)
            judged.append(every.predicted.detach())
        return terms, Clips(torch.stack(judged), mos)


def _terms(every: Clips, earlier: list[Clips], seen: Seen, pairs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The terms of one judge that go by ratings and prompts; its `every.predicted` is (N, 5)."""
    ranked = Clips(*(torch.cat(parts) for parts in zip(*earlier, every, strict=True)))
    rated, is_known = batch.mos[:, DIMENSIONS.index("Alignment")], batch.known.isfinite()
    terms = {
        "regression": regression_loss(every.predicted, every.mos),
        "ranking": ranking_loss(ranked.predicted, ranked.mos),
        "scale": scale_aware_loss(every.predicted, every.mos),
        "correlation": correlation_loss(ranked.predicted, ranked.mos),
        "alignment": alignment_loss(pairs, rated, batch.known, batch.own) * _share(is_known | ~batch.own)
        + choice_loss(pairs, batch.known) * _share(is_known.any(1)),
    }
    if seen.auxiliary:
        own = torch.stack([_of_all(seen.auxiliary[name]) for name in seen.auxiliary], 1).float()
        target = every.mos[:, [DIMENSIONS.index(name) for name in seen.auxiliary]]
        terms["auxiliary"] = regression_loss(own, target) + correlation_loss(own, target)
    return terms


class Clips(NamedTuple):
    """Predictions of each judge, (judges, N, 5), and ratings (N, 5) of some clips, MOS."""

    predicted: Tensor
    mos: Tensor


def _of_all(own: Tensor) -> Tensor:
    """The rows of every process, in their order; only our own with a gradient."""
    if not _several_processes():
        return own
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own.detach().contiguous())
    parts[distributed.get_rank()] = own
    return torch.cat(parts)


def _share(counted: Tensor) -> float:
    """Which share of what all processes count is ours."""
    if not _several_processes():
        return 1.0
    total = counted.sum()
    distributed.all_reduce(total)
    return float(counted.sum() / total.clamp(min=1))


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Trainer:
    """Trains one model.

    Args:
        build: makes the model with fresh trained parts; called once the seed is set.
        train_set, val_set: what to learn from, and what to choose the best epoch on.
        settings: the model's `train` section.
        state: folder for what a resumed run needs; None: nothing is kept.
        identity: names data and settings; a state of another identity is not gone on from.
        start: the checkpoint that training starts from; by default it starts from what `build` makes.
    """

    def __init__(
        self,
        build: Callable[[], QualityModel],
        train_set: ClipSet,
        val_set: ClipSet,
        settings: TrainSettings,
        *,
        state: Path | None,
        identity: str,
        start: Start | None = None,
    ) -> None:
        from accelerate import Accelerator

        torch.manual_seed(settings.seed)
        self.start = start
        self.settings, self.train_set, self.val_set = settings, train_set, val_set
        self.state_folder, self.identity = state, identity
        self.accelerator = Accelerator(
            mixed_precision=settings.precision, gradient_accumulation_steps=settings.accumulate
        )
        if self.accelerator.distributed_type not in ("NO", "MULTI_GPU", "MULTI_CPU"):
            raise TrainingError(
                f"{self.accelerator.distributed_type} is not supported: train on one device, or on several that each "
                "hold the whole model (for vjepa2, cache_stem leaves a sixth of it)"
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
        if start is not None:
            batches = self.accelerator.num_processes * settings.accumulate
            self.settings = settings = started(settings, steps_per_epoch=math.ceil(len(loader) / batches))
        self.model = build()
        if start is not None:
            self.model.hold_forests(start.forests)
            load_trained(self.model, start.tensors, Path(start.name))
        self.averaged = _copy(self.model).to(self.accelerator.device)
        self.objective: nn.Module = Objective(self.model)
        if settings.sharded:
            self._shard()
        else:
            self.objective = self.accelerator.prepare(self.objective)
        optimizer = make_optimizer(self.model, settings)
        self.pull = start and Pull(self.model, start.tensors, settings.start_pull, clips=len(train_set))
        # The loader too: accelerate then steps at the end of an epoch, however few batches have been accumulated, and
        # no gradient waits for the next epoch, where a resumed run would lack it.
        self.optimizer, self.loader = self.accelerator.prepare(optimizer, loader)
        steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.schedule = make_schedule(
            optimizer, warmup_steps=settings.warmup_steps, total_steps=steps_per_epoch * settings.epochs
        )
        self.weights = AdaptiveWeights(settings.loss)
        self.progress = _Progress()
        self.best: dict[str, Tensor] = {}

    def run(
        self,
        *,
        resume: bool,
        log: Callable[[int, Metrics], None],
        advance: Advance,
        log_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
    ) -> Trained:
        """Train to the last epoch, or until the score has not risen for `patience` epochs of the second half.

        Args:
            resume: go on from an interrupted run of the same data and settings, if there is one.
            log: gets each epoch's number and metrics.
            advance: told of the progress, in epochs.
            log_step: gets each optimizer step's number and metrics.
        Raises:
            TrainingError: a rating, an activation or the loss is no number, there are too few clips, a batch fails, or
                memory is used up.
        """
        for split, clips, least in (("train", self.train_set, 2), ("val", self.val_set, 3)):
            _check(clips, split, least)
        if not (resume and self._restore()):
            self._begin(log)
        progress, settings = self.progress, self.settings
        while not progress.finished:
            started, already = time.perf_counter(), progress.batch
            metrics = self._epoch(log_step)
            seconds = time.perf_counter() - started
            done = (len(self.loader) - already) * self._clips_per_batch
            progress.epoch, progress.batch, progress.sums, progress.norms = progress.epoch + 1, 0, {}, []
            metrics |= self._validate()
            progress.history.append(metrics)
            # The speed is logged only: what is stored follows from data and settings alone.
            log(progress.epoch, metrics | {"clips_per_second": done / seconds, "memory_mb": _memory_mb()})
            advance(progress.epoch, settings.epochs)
            self._keep_if_best(metrics)
            stalled = progress.epoch - max(progress.best_epoch, self._first - 1) >= settings.patience
            progress.finished = stalled or progress.epoch >= settings.epochs
            self._save()
        best = progress.history[progress.best_epoch - 1] if progress.best_epoch else progress.start
        return Trained(
            self._measured(),
            progress.best_epoch,
            best["val_score"],
            progress.history,
            dict(self.weights.current),
            [forest.size for forest in self.averaged.forests],
            progress.start.get("val_score"),
        )

    def _begin(self, log: Callable[[int, Metrics], None]) -> None:
        """What comes before the first step: measure the clips, or judge what training starts from, as epoch 0."""
        if self.start is None:
            measure_before(self.model, self.train_set)
            load_trained(self.averaged, trained_tensors(self.model), Path(CARD))
            return
        self.progress.start = self._validate()
        log(0, self.progress.start)
        self._keep_if_best(self.progress.start)

    @property
    def _first(self) -> int:
        """The first epoch that may be the best one."""
        if self.start is None:
            # Of the second half, when the rate has fallen: an early peak over a few prompts is luck.
            return self.settings.epochs // 2 + 1
        # Not worse than the start, as far as val can tell; too few clips can't: then the pull alone guards against it.
        return 0 if len(self.val_set) >= CHOOSING_CLIPS else self.settings.epochs

    def _keep_if_best(self, metrics: Metrics) -> None:
        progress = self.progress
        score = metrics["val_score"]
        if self.start is not None:  # to learn the raters' scale is what it is for, and correlations don't see that
            score = (score + metrics["val_concordance"]) / 2
        if progress.epoch >= self._first and score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            self.best = {name: value.clone() for name, value in trained_tensors(self.averaged).items()}

    def _shard(self) -> None:
        processes, precision = self.accelerator.num_processes, self.settings.precision
        if processes < 2 or precision == "fp16":
            raise TrainingError(
                f"train.sharded needs several processes and precision bf16 or no, got {processes} with {precision}; "
                "set train.processes, or train.sharded to false"
            )
        layers = [layer for judge in self.model.judges for layer in judge.encoder.layers()]
        shard(self.objective, layers, self.accelerator.device)

    def _measured(self) -> dict[str, Tensor]:
        """The best epoch's tensors, with what is measured on it."""
        # In every process, for it is nobody's turn any more to wait for another.
        load_trained(self.averaged, self.best, Path(CARD))
        settings = self.settings
        measure_after(
            self.averaged,
            self.train_set,
            self.val_set,
            seed=settings.seed,
            batch_size=settings.batch_size,
            keep_shares=self.start is not None and len(self.val_set) < CHOOSING_CLIPS,
        )
        return trained_tensors(self.averaged)

    @property
    def _clips_per_batch(self) -> int:
        """Of all processes together."""
        return min(self.settings.batch_size, len(self.train_set)) * self.accelerator.num_processes

    def _epoch(self, log_step: Callable[[int, Metrics], None]) -> Metrics:
        """The rest of an epoch; its metrics."""
        self.objective.train()
        progress = self.progress
        self.order.manual_seed(self.settings.seed * 100_003 + progress.epoch)
        loader = self.accelerator.skip_first_batches(self.loader, progress.batch) if progress.batch else self.loader
        window: list[Clips] = []
        for batch in loader:
            started = time.perf_counter()
            with self._explained(batch), self.accelerator.accumulate(self.objective):
                values = self._batch(batch, window)
            for name, value in values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.batch += 1
            if self.accelerator.sync_gradients:
                window.clear()
                speed = self._clips_per_batch / (time.perf_counter() - started)
                log_step(progress.step, self._step_metrics(values) | {"clips_per_second": speed})
                if self.settings.save_steps and progress.step % self.settings.save_steps == 0:
                    self._save()
        means = {name: value / len(self.loader) for name, value in progress.sums.items()}
        metrics = {f"loss_{name}": value for name, value in means.items()}
        metrics |= {f"weight_{name}": self.weights.current[name] for name in AdaptiveWeights.ADAPTING}
        self.weights.end_epoch(means)
        return metrics | {
            "learning_rate": float(self.schedule.get_last_lr()[-1]),
            "gradient_norm": float(np.mean(progress.norms)),
        }

    def _batch(self, batch: Batch, window: list[Clips]) -> Metrics:
        """Forward, backward and, at the end of an accumulation window, the optimizer's step; each term's value."""
        # Each batch has random numbers of its own on every device, for dropout: a resumed run needs to restore none.
        device = self.accelerator.process_index
        progress, settings = self.progress, self.settings
        entropy = [settings.seed, progress.epoch, progress.batch, device]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
        batch = batch.to(self.accelerator.device)
        rows = _of_all(batch.rows)
        if len(rows) > len(batch.rows):
            batch.known, batch.own = self.train_set.pairs(batch.rows.tolist(), rows.tolist(), batch.rows.device)
        with self.accelerator.autocast():
            terms, clips = self.objective(batch, window)
        window.append(clips)
        loss = self.weights.total(terms)
        values = {name: value.item() for name, value in terms.items()} | {"total": loss.item()}
        if not math.isfinite(values["total"]):
            each = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            raise TrainingError(
                f"the loss is {values['total']} at step {progress.step} ({each}); "
                f"clips of that batch: {', '.join(batch.names)}"
            )
        # The mean over the processes' gradients is taken; ours add up.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), settings.gradient_norm)
            progress.norms.append(float(whole(norm)))
        self.optimizer.step()
        if self.accelerator.sync_gradients:
            if self.pull:
                self.pull(self.optimizer.param_groups)
            self.schedule.step()
            progress.step += 1
            self._average()
        self.optimizer.zero_grad()
        return values

    def _step_metrics(self, values: Metrics) -> Metrics:
        """What is logged of an optimizer step: the last batch's losses, the norm, each part's rate, and memory."""
        rates = {f"rate_{group['part']}": group["lr"] for group in self.optimizer.param_groups}
        metrics = {f"loss_{name}": value for name, value in values.items()} | rates
        return metrics | {"gradient_norm": self.progress.norms[-1], "memory_mb": _memory_mb()}

    @contextmanager
    def _explained(self, batch: Batch) -> Iterator[None]:
        """Say what to change when memory is used up, and which clips were in a batch that failed otherwise."""
        step, size = self.progress.step, self.settings.batch_size
        try:
            yield
        except RuntimeError as err:  # torch's OutOfMemoryError is one, too
            cause = str(err).partition("\n")[0]
            saved = f"what was saved last is kept in {self.state_folder}; go on with --resume"
            if isinstance(err, torch.OutOfMemoryError) or "can't allocate memory" in cause:
                smaller, more = max(2, size // 2), self.settings.accumulate * 2
                raise TrainingError(
                    f"out of memory at step {step} with {size} clips a batch ({cause}). In params.yaml, set "
                    f"train.batch_size: {smaller} and train.accumulate: {more} (as many clips a step, about half the "
                    "activations), network.checkpointing: true where the model has it, or train.precision: bf16 on a "
                    f"GPU; {saved}"
                ) from err
            raise TrainingError(f"step {step} failed on clips {', '.join(batch.names)}: {cause}; {saved}") from err

    @torch.no_grad()
    def _average(self) -> None:
        """Draw the averaged model, which is validated and kept, to the trained one; young averages follow faster."""
        step = self.progress.step
        keep = min(self.settings.average, step / (10 + step))
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            if value.requires_grad:
                mean.lerp_(whole(value), 1 - keep)

    def _validate(self) -> Metrics:
        from qualivision.evaluation.metrics import agreement

        predicted = self._predicted()
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
        if self.start is not None:
            metrics["val_concordance"] = float(np.mean(concordance(predicted, rated.astype(np.float64))))
        return metrics

    def _predicted(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The averaged model's MOS of the val clips, (N, 5); each process scores a part of them."""
        count, processes = len(self.val_set), self.accelerator.num_processes
        rows, size = list(range(self.accelerator.process_index, count, processes)), self.settings.batch_size
        own = predict(self.averaged, self.val_set, rows=rows, device=self.accelerator.device, batch_size=size)
        if processes == 1:
            return own
        from accelerate.utils import gather_object

        every = np.empty((count, own.shape[1]))
        for start, part in enumerate(gather_object([own])):
            every[start::processes] = part
        return every

    def _save(self) -> None:
        """Write what a resumed run needs; one process does, once all have given their parts."""
        from safetensors.torch import save

        if self.state_folder is None:
            return

        optimizer = self.optimizer.state_dict()
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"last.{name}": value for name, value in trained_tensors(self.model).items()}
        tensors |= {f"averaged.{name}": value for name, value in trained_tensors(self.averaged).items()}
        for number, slots in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{slot}": whole(value).cpu().contiguous() for slot, value in slots.items()}
        if not self.accelerator.is_main_process:
            return
        values = {
            "identity": self.identity,
            "progress": self.progress.__dict__,
            "loss_weights": self.weights.state(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]],
        }
        # One file, so that it is never half new: the values travel in the header.
        header = {"state": json.dumps(values)}
        write_atomically(self.state_folder / STATE, save(tensors, metadata=header))

    def _restore(self) -> bool:
        """Go on from a saved state; False when there is none of this identity that is unfinished."""
        from safetensors import SafetensorError, safe_open

        path = None if self.state_folder is None else self.state_folder / STATE
        if path is None or not path.exists():
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
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            number, slot = name.split(".", 1)
            place = int(number)
            slots.setdefault(place, {})[slot] = value if slot == "step" else part_like(value, parameters[place])
        groups = [
            group | {"params": old["params"]}
            for group, old in zip(values["groups"], optimizer["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.schedule.last_epoch = values["schedule"]["last_epoch"]
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(values["scaler"])
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
        if not all(_is_finite(value) for value in (*clips.activations(row).values(), clips.text[row]))
    ]
    if broken:
        raise TrainingError(f"{split}: an activation or prompt embedding is no number for {_some(broken)}")


def _is_finite(value: Tensor) -> bool:
    if value.dtype == torch.int16:  # the bits of bfloat16, which NumPy does not know
        value = value.view(torch.bfloat16)
    return bool(value.isfinite().all())


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _copy(model: QualityModel) -> QualityModel:
    """A copy that shares the frozen stem, which may be gigabytes and never changes."""
    frozen = getattr(model.encoder, "frozen", None)
    return copy.deepcopy(model, {id(frozen): frozen})


def _memory_mb() -> float:
    """The most memory used so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def predict(
    model: QualityModel,
    clips: ClipSet,
    *,
    rows: list[int] | None = None,
    text: Tensor | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The MOS alone of `predict_with_distance`: (N, 5), in the order of `rows`, or of the table."""
    return predict_with_distance(model, clips, rows=rows, text=text, device=device, batch_size=batch_size)[0]


@torch.no_grad()
def predict_with_distance(
    model: QualityModel,
    clips: ClipSet,
    *,
    rows: list[int] | None = None,
    text: Tensor | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Score clips of a split from their cached activations.

    Args:
        model: the model.
        clips: the split.
        rows: which of its clips; by default all.
        text: (Dt,), the embedding that every clip is held against in place of its prompt's.
        device: where the model is.
        batch_size: clips at once.
    Returns:
        (N, 5) MOS and (N,) distances from the training clips, in the order of `rows`, or of the table.
    """
    model.eval()
    rows = list(range(len(clips))) if rows is None else rows
    found = [torch.empty(0, len(DIMENSIONS), dtype=torch.float64)]
    distance = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(rows), batch_size):
        batch = clips.collate(rows[start : start + batch_size]).to(torch.device(device))
        asked = model.embed(batch.prompts, batch.text) if text is None else text.to(device).expand(len(batch.rows), -1)
        said = model.from_stem(batch.activations, asked)
        found.append(said.mos.double().cpu())
        distance.append(said.distance.double().cpu())
    return torch.cat(found).numpy(), torch.cat(distance).numpy()
