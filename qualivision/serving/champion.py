"""Which model the server scores with: loading one, and following an alias of the registry while serving.

Owns the look at the registry every few seconds, and what becomes of a new version: loaded and warmed up beside the old
one, then handed on. One that can't be loaded changes nothing.
"""

from __future__ import annotations

import logging
import time
from threading import Event, Thread
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient

    from qualivision.scoring import Scorer
    from qualivision.serving.observing import Metrics

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 300.0
"""After which a version that could not be loaded is tried once more: its files may have come."""


class UnfitModelError(RuntimeError):
    """A model that loads, but gives no numbers."""


def alias_of(model: str | None) -> str | None:
    """The alias to follow; None when a model is pinned: a version, a run or a checkpoint folder."""
    from qualivision.registry import champion_uri

    if model is None:
        return champion_uri()
    return model if model.startswith("models:/") and "@" in model else None


def load(model: str | None) -> Scorer:
    """A model that has scored once, on frames of nothing: memory is there, kernels are chosen, numbers come out.

    Raises:
        ModelNotFoundError, CheckpointError: see `Scorer`.
        UnfitModelError: it gives no numbers.
    """
    from qualivision.scoring import Scorer

    scorer = Scorer(model)
    grey = tuple(np.full((spec.count, spec.height, spec.width, 3), 128, np.uint8) for spec in scorer.specs)
    found = scorer.judge([("the first frames", "nothing but grey", grey)])[0]
    if not all(np.isfinite(value) for value in found.values.values()):
        raise UnfitModelError(f"{scorer.name}: its scores are no numbers: {dict(found.values)}")
    return scorer


class Follower:
    """Follows an alias, on a thread of its own.

    Args:
        alias: such as `models:/qualivision@champion`.
        now: the version that scores, `models:/NAME/VERSION`.
        swap: takes a new model.
        metrics: what is counted.
        poll_seconds: between two looks.
        loading: makes a model of a version's URI.
    """

    def __init__(
        self,
        alias: str,
        now: str,
        swap: Callable[[Scorer], None],
        metrics: Metrics,
        *,
        poll_seconds: float,
        loading: Callable[[str], Scorer] = load,
    ) -> None:
        self._alias = alias
        self._now = now
        self._swap = swap
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._load = loading
        self._failed: str | None = None
        self._failed_at = 0.0
        self._unreachable = False
        self._store: MlflowClient | None = None
        self._stopped = Event()
        self._thread = Thread(target=self._follow, name="champion", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> None:
        """Stop following. A load that is under way changes nothing any more; its end is waited for, at most so long."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def look(self) -> None:
        """One look at the registry, and all that follows from it."""
        wanted = self._wanted()
        if wanted is None or wanted == self._now:
            return
        if wanted == self._failed and time.monotonic() - self._failed_at < _AGAIN_SECONDS:
            return
        log.info("%s means %s now, which is being loaded", self._alias, wanted)
        try:
            scorer = self._load(wanted)
        except Exception:  # whatever it is, the old model scores on
            self._metrics.failed_swaps.inc()
            self._failed, self._failed_at = wanted, time.monotonic()
            log.exception("%s can't be loaded; %s scores on", wanted, self._now)
            return
        if self._stopped.is_set():
            return
        self._swap(scorer)
        self._metrics.swaps.inc()
        log.info("%s scores from now on, after %s", wanted, self._now)
        self._now, self._failed = wanted, None

    def _wanted(self) -> str | None:
        from qualivision import registry, tracking

        try:
            self._store = self._store or tracking.client()
            found = registry.meant(self._store, self._alias)
        except Exception as err:  # noqa: BLE001 - a store that is away for a while stops nothing
            self._metrics.failed_polls.inc()
            if not self._unreachable:  # once, not every few seconds
                log.warning("%s can't be looked up, %s scores on: %s", self._alias, self._now, err)
            self._unreachable = True
            return None
        self._unreachable = False
        return found

    def _follow(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            self.look()
