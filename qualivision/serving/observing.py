"""What is to be seen of the server from outside: Prometheus metrics, and the log as one JSON object a line.

Owns names and labels of the metrics and the form of a log line; what is counted and logged is told by the others.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REQUESTS = logging.getLogger("qualivision.requests")
"""One line for each request; the fields are those of `Observed`."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in a process do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qualivision_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "qualivision_request_seconds",
            "From a request's headers to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue = Gauge("qualivision_queue_clips", "Clips waiting or being scored.", registry=registry)
        self.decode_seconds = Histogram(
            "qualivision_decode_seconds",
            "From a clip's admission to its frames, waiting for a worker included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "qualivision_model_seconds", "Of one batch in the model.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "qualivision_batch_clips", "Clips in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.refused = Counter("qualivision_videos_refused", "Videos that can't be used.", registry=registry)
        self.unfamiliar = Counter(
            "qualivision_clips_unfamiliar", "Scored clips unlike what the model was trained on.", registry=registry
        )
        self.lost = Counter(
            "qualivision_decoders_lost", "Videos that crashed or hung the process that read them.", registry=registry
        )
        self.swaps = Counter("qualivision_model_swaps", "Champions that took over while serving.", registry=registry)
        self.failed_swaps = Counter(
            "qualivision_model_swaps_failed",
            "Champions that could not be loaded; the old one stayed.",
            registry=registry,
        )
        self.failed_polls = Counter(
            "qualivision_registry_polls_failed", "Looks at the registry that failed.", registry=registry
        )
        self._model = Gauge("qualivision_model_info", "1 for the model that scores.", ["model"], registry=registry)

    def model(self, name: str) -> None:
        """Say which model scores from now on."""
        self._model.clear()
        self._model.labels(name).set(1)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


class JsonLines(logging.Formatter):
    """A log record as one JSON object; what a record's `fields` say stands at its top level."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        fields = getattr(record, "fields", None)
        line |= fields if fields is not None else {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
