"""The engine of the server: clips come in, are decoded in worker processes and scored on one thread, in batches.

Owns how much is admitted, the order, the batches, and the change from one model to the next between two batches. A clip
is scored by the model that was there when it came, for its frames are decoded to what that model reads. Knows nothing
of HTTP, nor where models come from.
"""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any

from qualivision.decoding import Decoders
from qualivision.errors import QualiVisionError
from qualivision.video import Bounds, LostVideoError, VideoError
from qualivision.workers import cores

if TYPE_CHECKING:
    from pathlib import Path

    from qualivision.scoring import Scorer, Scores
    from qualivision.serving.observing import Metrics
    from qualivision.settings import DecodeSettings, ServeSettings
    from qualivision.video import Clip

log = logging.getLogger(__name__)

NAME = "the video"
"""What every clip is called: where it lies is nobody's business."""

_GPU_BATCH = 8
_LONGEST_WAIT = 60


class FullError(QualiVisionError):
    """As many clips as are allowed wait already."""

    def __init__(self, queue: int, retry_after: int) -> None:
        super().__init__(f"{queue} clips are waiting, which is as many as may; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosingError(QualiVisionError):
    """Nothing is admitted any more."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send it to another, or again in a moment")


@dataclass(eq=False)
class _Clip:
    scorer: Scorer
    prompt: str
    outcome: Future[Scores] = field(default_factory=Future)
    admitted: float = field(default_factory=time.monotonic)


_Ready = tuple[_Clip, Any]  # with its frames


class Engine:
    """The model at work. Any thread may submit.

    Args:
        scorer: the model to begin with.
        settings: the `serve` section.
        decode: the `decode` section: limits of one video in its worker.
        metrics: what is counted.
    """

    def __init__(self, scorer: Scorer, settings: ServeSettings, decode: DecodeSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scorer = scorer
        self._admitted = 0
        self._open = True
        self._changed = Condition()
        self._seconds_per_clip = 1.0
        self._last_left = 0.0
        self._ready: SimpleQueue[_Ready | None] = SimpleQueue()
        bounds = Bounds(seconds=settings.max_seconds, pixels=settings.max_pixels)
        self._workers = settings.workers or cores()
        self._decoders = Decoders(decode, bounds=bounds, workers=self._workers)
        self._thread = Thread(target=self._score, name="model", daemon=True)
        self._thread.start()
        metrics.model(scorer.name)

    @property
    def scorer(self) -> Scorer:
        """The model that scores what comes now."""
        return self._scorer

    @property
    def ready(self) -> bool:
        """Whether clips are taken at all; when the queue is full, too."""
        return self._open and self._thread.is_alive()

    def check_room(self) -> None:
        """Raises FullError or ClosingError if a clip that came now were not admitted."""
        with self._changed:
            self._check_room()

    def submit(self, path: Path, prompt: str) -> Future[Scores]:
        """Have a video scored.

        Args:
            path: the file; it has to stay until the outcome is there.
            prompt: not blank.
        Returns:
            The scores, or a VideoError. Cancelled, a clip is not scored; its place is free when its worker is.
        Raises:
            FullError, ClosingError: not admitted.
        """
        with self._changed:
            self._check_room()
            clip = _Clip(self._scorer, prompt)
            self._admitted += 1
            self._metrics.queue.set(self._admitted)
        try:
            decoding = self._decoders.frames(path, clip.scorer.specs)
        except BaseException:
            self._leave(clip)
            if self._open:  # the workers can't be had any more; whoever looks at /ready shall start us anew
                log.critical("the decoders are broken, and nothing is admitted any more")
                self.stop_admitting()
            raise
        decoding.add_done_callback(partial(self._decoded, clip))
        return clip.outcome

    def swap(self, scorer: Scorer) -> None:
        """Score what comes from now on with another model. What is admitted keeps the one it came with."""
        with self._changed:
            self._scorer = scorer
        self._metrics.model(scorer.name)

    def warm_up(self, clip: Path) -> None:
        """Start the workers and load what they need by a clip of ours, so that the first stranger need not wait."""
        for decoding in [self._decoders.frames(clip, self._scorer.specs) for _ in range(self._workers)]:
            decoding.result()

    def stop_admitting(self) -> None:
        """From now on every clip is a ClosingError. May be called by a signal's handler, so it takes no lock."""
        self._open = False

    def close(self, seconds: float = 0.0) -> None:
        """Stop: wait for what was admitted, at most so long, then end the workers. What is left fails."""
        self.stop_admitting()
        with self._changed:
            self._changed.wait_for(lambda: self._admitted == 0, timeout=seconds)
        self._decoders.close()
        self._ready.put(None)
        self._thread.join(timeout=max(seconds, 1.0))

    def _check_room(self) -> None:
        if not self.ready:
            raise ClosingError
        if self._admitted >= self._settings.queue:
            wait = math.ceil(self._admitted * self._seconds_per_clip)
            raise FullError(self._admitted, min(max(wait, 1), _LONGEST_WAIT))

    def _leave(self, clip: _Clip) -> None:
        now = time.monotonic()
        with self._changed:
            self._admitted -= 1
            self._metrics.queue.set(self._admitted)
            # From one leaving to the next, as long as there was something to do: what Retry-After goes by.
            took = now - max(self._last_left, clip.admitted)
            self._seconds_per_clip += 0.1 * (took - self._seconds_per_clip)
            self._last_left = now
            self._changed.notify_all()

    def _decoded(self, clip: _Clip, decoding: Future[Clip]) -> None:
        self._metrics.decode_seconds.observe(time.monotonic() - clip.admitted)
        err = decoding.exception()
        if isinstance(err, VideoError):
            self._metrics.refused.inc()
            if isinstance(err, LostVideoError):
                self._metrics.lost.inc()
        if err is None and not clip.outcome.cancelled():
            self._ready.put((clip, decoding.result()))
            return
        self._leave(clip)
        if clip.outcome.set_running_or_notify_cancel():
            clip.outcome.set_exception(err)

    def _score(self) -> None:
        import torch

        torch.set_num_threads(cores())
        on_gpu = torch.cuda.is_available()
        size = self._settings.batch_size or (_GPU_BATCH if on_gpu else 1)
        first = self._ready.get()
        while first is not None:
            batch, first = self._gather(first, size)
            self._judge(batch)
            batch.clear()  # or the frames, and a model that is out, would stay until the next clip comes
            if first is None:
                first = self._ready.get()

    def _gather(self, first: _Ready, size: int) -> tuple[list[_Ready], _Ready | None]:
        """A batch for one model; and what came after it but is for another."""
        batch = [first]
        until = time.monotonic() + self._settings.batch_wait_ms / 1000
        while len(batch) < size:
            # Who is alone need not wait for company.
            left = until - time.monotonic() if self._admitted > len(batch) else 0.0
            try:
                found = self._ready.get(timeout=left) if left > 0 else self._ready.get_nowait()
            except Empty:
                break
            if found is None:
                self._ready.put(None)
                break
            if found[0].scorer is not first[0].scorer:
                return batch, found
            batch.append(found)
        return batch, None

    def _judge(self, batch: list[_Ready]) -> None:
        wanted = []
        for clip, frames in batch:
            if clip.outcome.set_running_or_notify_cancel():
                wanted.append((clip, frames))
            else:
                self._leave(clip)
        if wanted:
            self._judge_wanted(wanted)

    def _judge_wanted(self, wanted: list[_Ready]) -> None:
        start = time.monotonic()
        try:
            found = wanted[0][0].scorer.judge([(NAME, clip.prompt, frames) for clip, frames in wanted])
        except Exception as err:  # noqa: BLE001 - it is the clip's outcome, and the thread has to go on
            if len(wanted) > 1:
                log.warning("a batch of %d failed and is tried one by one: %r", len(wanted), err)
                for one in wanted:
                    self._judge_wanted([one])
                return
            self._leave(wanted[0][0])
            wanted[0][0].outcome.set_exception(err)
            return
        self._metrics.model_seconds.observe(time.monotonic() - start)
        self._metrics.batch.observe(len(wanted))
        self._metrics.unfamiliar.inc(sum(bool(scores.warning) for scores in found))
        for (clip, _), scores in zip(wanted, found, strict=True):
            self._leave(clip)
            clip.outcome.set_result(scores)
