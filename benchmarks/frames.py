"""What a clip's frames cost: our way, the plain way that people write, and reading them back from the cache.

    python benchmarks/frames.py                    clips made here: three sizes, H.264
    python benchmarks/frames.py --clips FOLDER     your own

The plain way: decord's `get_batch`, each frame resized by PIL, a float tensor. Both take the same 64 uniform frames to
the same size, in turn, in one process held to one core. Then worker processes: how much faster two are than one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qualivision import environment, video
from qualivision.cache import Cache, make_key
from qualivision.settings import DecodeSettings, FrameSpec
from qualivision.video import VideoError, frame_indices, read_frames
from qualivision.workers import in_processes

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 64
SIDES = (640, 384)
MADE = {"512x512": (512, 512, 96), "1280x720": (1280, 720, 120), "1920x1080": (1920, 1080, 120)}
"""Width, height and frames of the clips that are made here."""


def make_clip(path: Path, width: int, height: int, frames: int) -> None:
    """A clip that costs a decoder what real ones do: soft texture that moves, and some grain."""
    import av
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(size=(height + 200, width + 200, 3)), (4, 4, 0))
    texture = 128 + 50 * texture / texture.std()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "23", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            moved = texture[i : i + height, i // 2 : i // 2 + width] + rng.normal(scale=2, size=(height, width, 1))
            picture = np.clip(moved, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def plain(path: Path, side: int) -> Any:
    """The plain way: (64, 3, side, side) float in [0, 1]."""
    import decord
    import torch
    from PIL import Image

    reader = decord.VideoReader(str(path))
    batch = reader.get_batch(frame_indices(len(reader), COUNT)).asnumpy()
    resized = [np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR)) for frame in batch]
    return torch.stack([torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255 for frame in resized])


def fastest(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each way, the best of some rounds, in turn."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def compare(clips: dict[str, Path], folder: Path, rounds: int) -> None:
    """Print frames per second on one core, and ratios to the plain way."""
    cache = Cache(folder / "cache", stage="benchmark")
    print(f"{'clip':>24} {'side':>5} {'plain':>9} {'ours':>9} {'cache':>9}   frames/s on one core; ratio to plain")
    for name, path in clips.items():
        for side in SIDES:
            spec = FrameSpec(count=COUNT, height=side, width=side)
            key = make_key(name, side)
            frames = read_frames(path, spec)
            cache.write(key, {"frames": frames})
            ways: dict[str, Callable[[], Any]] = {
                "plain": lambda path=path, side=side: plain(path, side),  # type: ignore[misc]
                "ours": lambda path=path, spec=spec: read_frames(path, spec),  # type: ignore[misc]
                "cache": lambda key=key: cache.read(key)["frames"],  # type: ignore[misc]
                "copied": lambda key=key: cache.read(key)["frames"].copy(),  # type: ignore[misc]
            }
            seconds = fastest(ways, rounds)
            rate = {way: COUNT / seconds[way] for way in ways}
            ratios = ", ".join(f"{way} {rate[way] / rate['plain']:.1f}x" for way in ("ours", "cache", "copied"))
            print(f"{name:>24} {side:>5} {rate['plain']:9.0f} {rate['ours']:9.0f} {rate['cache']:9.0f}   {ratios}")
            cache.path(key).unlink()


def decode_one(path: Path, side: int) -> int:
    """A job of the scaling test."""
    return len(read_frames(path, FrameSpec(count=COUNT, height=side, width=side)))


def scaling(clips: dict[str, Path], jobs: int) -> None:
    """Print how much faster two worker processes are than one, their start included."""
    guard = video.decoding_guard(DecodeSettings())
    work = [(path, SIDES[0]) for _ in range(jobs) for path in clips.values()]
    seconds = {}
    for workers in (1, 2):
        start = time.perf_counter()
        frames = sum(in_processes(decode_one, work, workers=workers, guard=guard))
        seconds[workers] = time.perf_counter() - start
        print(f"{workers} worker{'s' * (workers > 1)}: {frames / seconds[workers]:.0f} frames/s over {len(work)} clips")
    print(f"two processes against one: {seconds[1] / seconds[2]:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="a folder of videos; without it three are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=8, help="how often each clip is decoded to see how processes scale")
    args = parser.parse_args()
    environment.keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="qualivision-frames-"))
    environment.STATE = folder
    try:
        if args.clips:
            clips = {path.name: path for path in sorted(args.clips.iterdir()) if usable(path)}
        else:
            clips = {name: folder / f"{name}.mp4" for name in MADE}
            for name, made in MADE.items():
                make_clip(clips[name], *made)
        if not clips:
            sys.exit(f"{args.clips}: no video that can be read")
        scaling(clips, args.jobs)
        os.environ["OMP_NUM_THREADS"] = "1"
        if sys.platform == "linux":
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import torch

        torch.set_num_threads(1)
        compare(clips, folder, args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def usable(path: Path) -> bool:
    """Whether both ways can read a file."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        read_frames(path, FrameSpec(count=2, height=32, width=32))
        decord.VideoReader(str(path))
    except (VideoError, decord.DECORDError, RuntimeError):
        return False
    return True


if __name__ == "__main__":
    main()
