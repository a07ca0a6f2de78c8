"""What all tests share: state in a temporary folder, no network, and a maker of tiny clips."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qualivision import environment

# Here and not in a fixture: the heavy packages read these when a test module imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
STATE = Path(tempfile.mkdtemp(prefix="qualivision-tests-"))
environment.prepare(STATE)
environment.STATE = STATE

MakeClip = Callable[..., Path]


def pytest_unconfigure() -> None:
    shutil.rmtree(STATE, ignore_errors=True)


def write_clip(
    path: Path,
    *,
    frames: int = 12,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 8,
    shade: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip whose frame i is grey level `shade + 10 * i`, with a textured square that moves."""
    import av

    texture = np.random.default_rng(shade).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for i in range(frames):
            picture = np.full((height, width, 3), (shade + 10 * i) % 256, np.uint8)
            left = i % (width // 2)
            picture[: height // 2, left : left + width // 2] = texture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forests of a few trees, for tests that train many models: those of 300 take a second each."""
    from qualivision.training import measuring

    monkeypatch.setattr(measuring, "TREES", 10)


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """`make_clip(path, frames=..., codec=..., ...)` writes a tiny clip and returns its path."""
    return write_clip
