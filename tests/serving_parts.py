"""Small parts for the tests of the server: a scorer that obeys, decoders that read nothing, requests by hand."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from small_models import FRAMES

from qualivision.labels import DIMENSIONS
from qualivision.scoring import Scores

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "A cat is running on the grass"
BOUNDARY = "a-boundary"


class FakeScorer:
    """Gives every clip its `value` and `distance`. While `gate` is closed it does not come to an end."""

    def __init__(self, name: str = "models:/fake/1", value: float = 3.0, distance: float = 0.5) -> None:
        self.name = name
        self.value = value
        self.distance = distance
        self.specs = (FRAMES,)
        self.kind = "lite"
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.batches: list[list[str]] = []

    def judge(self, clips: list[tuple[str, str, Any]]) -> list[Scores]:
        self.batches.append([prompt for _, prompt, _ in clips])
        self.began.set()
        assert self.gate.wait(20)
        if any("spoilt" in prompt for _, prompt, _ in clips):
            raise RuntimeError("no kernel image in /opt/secret/driver.so")
        values = dict.fromkeys(DIMENSIONS, self.value)
        weights = dict.fromkeys(DIMENSIONS[:4], 0.25)
        return [Scores(name, prompt, values, weights, self.name, self.distance) for name, prompt, _ in clips]


class FakeDecoders:
    """In place of worker processes: frames of nothing, at once or, once `hold` is set, when `release` is called."""

    def __init__(self, *_: object, **__: object) -> None:
        self.hold = False
        self.held: list[Future[Any]] = []

    def frames(self, path: Path, specs: object) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append(future)
        if not self.hold:
            self.release()
        return future

    def release(self) -> None:
        while self.held:
            self.held.pop().set_result((np.zeros((2, 2, 2, 3), np.uint8),))

    def close(self) -> None:
        pass


def form(video: bytes, prompt: str | bytes = PROMPT, *, filename: str = "clip.mp4") -> bytes:
    """A multipart body with both fields."""
    text = prompt.encode() if isinstance(prompt, str) else prompt
    return parts(
        (f'form-data; name="video"; filename="{filename}"', video),
        ('form-data; name="prompt"', text),
    )


def parts(*fields: tuple[str, bytes]) -> bytes:
    """A multipart body of these Content-Dispositions and contents."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in fields
    )
    return body + f"--{BOUNDARY}--\r\n".encode()


FORM_TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
