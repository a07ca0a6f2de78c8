"""Mutated videos, and what becomes of them: a bounded fuzz run.

    python tests/fuzzing.py                  2,400 files, some minutes
    python tests/fuzzing.py --files 20000 --seed 7 --keep FOLDER

Small clips of each codec are damaged in many ways, and each is read in a worker process under limits. A file ends as

    refused   a VideoError says what is wrong
    same      the damage lay where no sampled frame needs it: the frames are those of the clip before
    other     frames, but not those of before, and nothing in the file told the decoder
    lost      its process crashed or hung, twice; the run went on

Exit code 1 when anything else happened, or when a file that was cut off gave other frames than before: what must never
be scored as if it were fine. "other" remains where a codec's payload carries no redundancy (VP9, AV1, HEVC, GIF).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from qualivision.settings import DecodeSettings, FrameSpec
from qualivision.video import VideoError, decoding_guard, read_frames
from qualivision.workers import in_processes

SPEC = FrameSpec(count=16, height=64, width=64)
LIMITS = DecodeSettings(seconds=20, memory_gb=2)
SEEDS = {
    "h264.mp4": {},
    "h264-index-first.mp4": {"container_options": {"movflags": "faststart"}},
    "h264.mkv": {},
    "h264.ts": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "moving.gif": {"codec": "gif", "pixels": "rgb8"},
}
MUTATIONS = ("bits", "noise", "zeros", "cut", "gap", "twice", "numbers", "mix")


def make_seeds(folder: Path) -> list[Path]:
    """One small clip of each kind."""
    from conftest import write_clip

    folder.mkdir(parents=True, exist_ok=True)
    return [write_clip(folder / name, frames=24, width=96, height=64, **made) for name, made in SEEDS.items()]


def mutate(content: bytes, how: str, chance: random.Random, other: bytes) -> bytes:
    """A damaged copy. Half of the damage goes to the first kilobyte, where the headers of most containers are."""
    out = bytearray(content)
    reach = min(len(out), 1024) if chance.random() < 0.5 else len(out)
    at, length = chance.randrange(reach), chance.choice((1, 4, 16, 64, 256))
    match how:
        case "bits":
            for _ in range(chance.choice((1, 2, 8, 32))):
                out[chance.randrange(reach)] ^= 1 << chance.randrange(8)
        case "noise":
            out[at : at + length] = chance.randbytes(len(out[at : at + length]))
        case "zeros":
            out[at : at + length] = bytes(len(out[at : at + length]))
        case "cut":
            del out[chance.randrange(len(out)) :]
        case "gap":
            del out[at : at + length]
        case "twice":
            out[at:at] = out[at : at + length]
        case "numbers":
            for _ in range(chance.choice((1, 3))):
                place = chance.randrange(reach)
                out[place : place + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1")
                )
        case "mix":
            out[at:] = other[min(at, len(other)) :]
    return bytes(out)


def judge(
    path: Path, number: int, how: str, seeds: list[Path], whole: dict[str, str], keep: Path | None
) -> tuple[str, ...]:
    """A job: damage a seed, and read it. `path` is for the damaged file, and keeps it if its process is lost."""
    seed = seeds[number % len(seeds)]
    chance = random.Random(number)
    path.write_bytes(mutate(seed.read_bytes(), how, chance, seeds[(number + 1) % len(seeds)].read_bytes()))
    try:
        verdict = "same" if digest(path) == whole[seed.name] else "other"
    except VideoError:
        verdict = "refused"
    if keep is not None and verdict == "other":
        shutil.copy(path, keep / f"{verdict}-{how}-{path.name}")
    path.unlink()
    return seed.name, how, verdict


def digest(path: Path) -> str:
    """The frames of a clip as one text."""
    frames = read_frames(path, SPEC)
    assert frames.shape == (SPEC.count, SPEC.height, SPEC.width, 3)
    return hashlib.sha256(frames.tobytes()).hexdigest()


def fuzz(
    folder: Path, files: int, *, seed: int = 0, workers: int | None = None, keep: Path | None = None
) -> Counter[tuple[str, ...]]:
    """Damage and read so many files; counts of (clip, mutation, verdict). Raises whatever is no VideoError."""
    seeds = make_seeds(folder / "seeds")
    whole = {path.name: digest(path) for path in seeds}
    jobs = [
        (
            folder / f"{number}-{seeds[number % len(seeds)].name}",
            number,
            MUTATIONS[number // len(seeds) % len(MUTATIONS)],
        )
        for number in range(seed * files, (seed + 1) * files)
    ]
    found: Counter[tuple[str, ...]] = Counter()
    guard = decoding_guard(LIMITS)
    try:
        for verdict in in_processes(judge, [(*job, seeds, whole, keep) for job in jobs], workers=workers, guard=guard):
            found[verdict] += 1
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{found.total()} of {files}")
    except (VideoError, ExceptionGroup) as group:
        for err in getattr(group, "exceptions", [group]):
            if not isinstance(err, VideoError):
                raise
            how = next(job[2] for job in jobs if job[0] == err.path)
            found[err.path.name.split("-", 1)[1], how, "lost"] += 1
            if keep is not None:
                shutil.move(err.path, keep / f"lost-{how}-{err.path.name}")
    return found


def scored_as_if_fine(found: Counter[tuple[str, ...]]) -> int:
    """How many files that were cut off gave other frames than the whole clip.

    A transport stream that ends between two of its packets says nothing of it, and is not counted.
    """
    return sum(
        n for (name, how, verdict), n in found.items() if (how, verdict) == ("cut", "other") and name[-3:] != ".ts"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0, help="which files; equal seeds damage alike")
    parser.add_argument("--keep", type=Path, help="a folder for the files that ended as other or lost")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="qualivision-fuzz-"))
    start = time.monotonic()
    try:
        found = fuzz(folder, args.files, seed=args.seed, keep=args.keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    verdicts = ("refused", "same", "other", "lost")
    for place, names in ((0, SEEDS), (1, MUTATIONS)):
        print(f"\n{'':>22}" + "".join(f"{verdict:>9}" for verdict in verdicts))
        for name in names:
            of = Counter[str]()
            for key, count in found.items():
                of[key[2]] += count if key[place] == name else 0
            print(f"{name:>22}" + "".join(f"{of[verdict]:>9}" for verdict in verdicts))
    wrong = scored_as_if_fine(found)
    print(f"\n{found.total()} files in {time.monotonic() - start:.0f} s; cut off and read all the same: {wrong}")
    return int(found.total() != args.files or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
