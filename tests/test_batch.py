"""Scoring many videos: a row for each, nothing done twice or lost by a kill, hostile files cost themselves alone."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hostile_decoder
import pandas as pd
import pytest
from filelock import FileLock
from small_models import FRAMES, write_checkpoint, write_clip

from qualivision import cli, decoding, score_run, video
from qualivision.batch import Asked, judged, plan
from qualivision.decoding import Decoders
from qualivision.errors import QualiVisionError
from qualivision.evaluation.metrics import PREDICTED_COLUMNS
from qualivision.labels import DIMENSIONS
from qualivision.score_table import COLUMNS, ScoreTableError, open_table
from qualivision.scoring import Scorer, Scores
from qualivision.settings import DecodeSettings

ROOT = Path(__file__).parents[1]
CLIPS = [f"{letter}_{number}.mp4" for number in range(3) for letter in "AB"]
FORMATS = [".parquet", ".csv", ".jsonl"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("batch") / "checkpoint")


@pytest.fixture(scope="module")
def scorer(checkpoint) -> Scorer:
    return Scorer(checkpoint)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Six clips, each with its own prompt in `prompts.csv`; to be copied."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "clips" / "deep").mkdir(parents=True)
    for seed, name in enumerate(CLIPS):
        write_clip(folder / "clips" / ("deep" if name[0] == "B" else "") / name, seed=seed)
    write_prompts(folder, {name: f'A cat, "number" {number}' for number, name in enumerate(CLIPS)})
    return folder


@pytest.fixture
def place(library, tmp_path, monkeypatch) -> Path:
    """A working folder of one's own with the library in it."""
    shutil.copytree(library, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_prompts(folder: Path, prompts: dict[str, str]) -> None:
    with (folder / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_name", "Prompt"), *prompts.items()])


def prompts_of(folder: Path) -> dict[str, str]:
    with (folder / "prompts.csv").open(newline="") as file:
        return {row["video_name"]: row["Prompt"] for row in csv.DictReader(file)}


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".jsonl":
        return pd.DataFrame(map(json.loads, path.read_text().splitlines()))
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


KNOWN: dict[tuple[str, bytes], Scores] = {}
"""By prompt and frames: most tests are not about the model, which takes its time."""


class Engine:
    """Decoders that read in this process, and a scorer that counts."""

    workers = 2

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.read, self.decoded_ahead = scorer, [], 0
        self.specs = (FRAMES,)
        self._waiting = 0

    def frames(self, path, specs):
        from concurrent.futures import Future

        future: Future = Future()
        self.read.append(path.name)
        self._waiting += 1
        self.decoded_ahead = max(self.decoded_ahead, self._waiting)
        try:
            future.set_result(video.read_clip(path, specs))
        except QualiVisionError as err:
            self._waiting -= 1
            future.set_exception(err)
        return future

    def judge(self, clips):
        self._waiting -= len(clips)
        if len(clips) > 1:
            return self.scorer.judge(clips)
        [(name, prompt, frames)] = clips
        if (key := (prompt, frames[0].tobytes())) not in KNOWN:
            KNOWN[key] = self.scorer.judge(clips)[0]
        return [replace(KNOWN[key], video=name)]

    def fill(self, out: str, *, overwrite: bool = False, model: str = "m", stop_after: int | None = None):
        """`qualivision score clips --prompts prompts.csv --out OUT`, without its processes."""
        self.read.clear()
        asked = plan([Path("clips")], Path("prompts.csv"))
        self.said: list[str] = []

        def score(videos):
            for number, found in enumerate(judged(self, self, videos)):
                if number == stop_after:
                    raise KeyboardInterrupt
                yield found

        with open_table(Path(out), model, overwrite=overwrite) as table:
            ignored = {"advance": lambda done, total: None, "complain": self.said.append}
            return score_run.fill(table, asked.videos, score, model=model, **ignored)


@pytest.fixture
def engine(scorer) -> Engine:
    return Engine(scorer)


# What is asked for


def test_rows_find_their_videos_at_any_depth_by_name_or_by_path(place):
    write_prompts(place, {"A_0.mp4": "a", "deep/B_0.mp4": "b", "B_1.mp4": "c"})
    asked = plan([Path("clips")], Path("prompts.csv")).videos
    assert {name: item.path for name, item in asked.items()} == {
        "A_0.mp4": "clips/A_0.mp4",
        "deep/B_0.mp4": "clips/deep/B_0.mp4",
        "B_1.mp4": "clips/deep/B_1.mp4",
    }
    assert not any(item.error for item in asked.values())


def test_what_is_amiss_is_counted_and_named_and_has_a_row(place):
    prompts = prompts_of(place) | {"A_1.mp4": " ", **{f"gone_{number}.mp4": "a" for number in range(5)}}
    del prompts["B_2.mp4"]
    write_prompts(place, prompts)
    with open("prompts.csv", "a") as file:
        file.write("A_2.mp4,another prompt\n")
    shutil.copy("clips/A_0.mp4", "clips/deep/A_0.mp4")
    found = plan([Path("clips")], Path("prompts.csv"))
    apart = "give the path below the folder as video_name, or rename one"
    assert list(found.notes) == [
        "A_2.mp4: has more than one prompt in prompts.csv",
        f"A_0.mp4: is there twice: clips/A_0.mp4 and clips/deep/A_0.mp4; {apart}",
        "5 rows of prompts.csv without a video in clips: gone_0.mp4, gone_1.mp4, gone_2.mp4 and 2 more",
        "1 row of prompts.csv without a prompt: A_1.mp4",
        "1 video without a row in prompts.csv, not scored: clips/deep/B_2.mp4",
    ]
    assert set(found.videos) == set(prompts)
    assert [name for name, item in found.videos.items() if not item.error] == ["B_0.mp4", "B_1.mp4"]


def test_a_named_file_without_a_prompt_is_named_and_the_rest_of_the_table_is_not_asked_for(place):
    found = plan([Path("clips/A_0.mp4"), Path("clips/other.mp4")], Path("prompts.csv"))
    assert list(found.videos) == ["A_0.mp4"]
    assert found.unasked == ("clips/other.mp4: has no prompt in prompts.csv",)


# Rows


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_has_a_sorted_row_for_each_video_with_the_scores_of_the_scorer(place, engine, suffix):
    Path("clips/A_1.mp4").write_bytes(b"no video")
    done = engine.fill(f"scores{suffix}")
    table = read(Path(f"scores{suffix}"))
    assert (done.rows, done.kept, done.failed) == (6, 0, 1)
    assert tuple(table.columns) == COLUMNS
    assert list(table["video_name"]) == sorted(CLIPS)
    assert dict(zip(table["video_name"], table["Prompt"], strict=True)) == prompts_of(place)
    good = table[table["video_name"] != "A_1.mp4"].set_index("video_name")
    for name, row in good.iterrows():
        found = engine.scorer.score(next(Path("clips").rglob(name)), prompt=row["Prompt"])
        assert list(row[list(PREDICTED_COLUMNS)]) == [round(found[dimension], 4) for dimension in DIMENSIONS]
        assert (row["distance"], row["warning"]) == (round(found.distance, 4), found.warning)
    assert set(good["error"].fillna("")) == {""} and set(good["model"]) == {"m"}
    bad = table.set_index("video_name").loc["A_1.mp4"]
    assert bad[[*PREDICTED_COLUMNS, "distance"]].isna().all() and not bad.fillna("")["warning"]
    assert bad["error"].startswith("can't be decoded") and "clips" not in bad["error"]
    assert (bad["size"], bad["mtime_ns"]) == (8, os.stat("clips/A_1.mp4").st_mtime_ns)
    assert len(engine.said) == 1 and engine.said[0].startswith("clips/A_1.mp4: can't be decoded")
    assert not list(Path().glob("*.journal"))


def test_videos_of_the_table_that_lie_nowhere_are_rows_with_an_error(place, engine):
    write_prompts(place, prompts_of(place) | {"gone.mp4": "a dog"})
    engine.fill("scores.jsonl")
    row = json.loads(Path("scores.jsonl").read_text().splitlines()[-1])
    assert (row["video_name"], row["error"], row["Overall_predicted"]) == ("gone.mp4", "no such file in clips", None)
    assert (row["size"], row["mtime_ns"], engine.said) == (None, None, [])


@pytest.mark.parametrize("clips_at_once", [1, 4])
def test_only_so_many_videos_are_decoded_ahead_as_processes_and_batch_need(place, engine, clips_at_once):
    videos = [(str(number), Asked("a cat", "clips/A_0.mp4")) for number in range(50)]
    found = dict(judged(engine, engine, iter(videos), batch=clips_at_once))
    assert len(found) == 50 and len({tuple(scores.values.values()) for scores in found.values()}) <= clips_at_once
    assert engine.decoded_ahead <= 2 * engine.workers + clips_at_once


def test_clips_in_a_batch_get_their_own_scores(place, engine):
    videos = [(name, Asked(prompt, str(next(Path("clips").rglob(name))))) for name, prompt in prompts_of(place).items()]
    for name, found in judged(engine, engine, videos, batch=4):
        alone = engine.scorer.score(next(Path("clips").rglob(name)), prompt=prompts_of(place)[name])
        assert found.values == pytest.approx(alone.values, abs=1e-4)


# Going on


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stop_after", [0, 1, 4])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(place, engine, suffix, stop_after):
    Path("clips/A_1.mp4").write_bytes(b"no video")
    engine.fill(f"whole{suffix}")
    with pytest.raises(KeyboardInterrupt):
        engine.fill(f"scores{suffix}", stop_after=stop_after)
    assert not Path(f"scores{suffix}").exists()
    engine.fill(f"scores{suffix}")
    assert len(engine.read) == 6 - stop_after + (stop_after > 0)  # the one that failed is tried again
    assert Path(f"scores{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()


def test_a_journal_torn_anywhere_is_gone_on_with(place, engine):
    engine.fill("whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        engine.fill("scores.jsonl", stop_after=3)
    journal = Path("scores.jsonl.journal").read_bytes()
    lines = journal.splitlines(keepends=True)
    for cut in (0, 5, len(lines[0]), len(lines[0]) + 9, len(journal) - 1, len(journal)):
        Path("scores.jsonl").unlink(missing_ok=True)
        Path("scores.jsonl.journal").write_bytes(journal[:cut])
        engine.fill("scores.jsonl")
        assert len(engine.read) == 6 - max(0, journal[:cut].count(b"\n") - 1), cut
        assert Path("scores.jsonl").read_bytes() == Path("whole.jsonl").read_bytes(), cut


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_finished_table_again_scores_only_what_is_new_changed_or_failed(place, engine, suffix):
    out = Path(f"scores{suffix}")
    Path("clips/A_1.mp4").write_bytes(b"no video")
    engine.fill(str(out))
    before = read(out).set_index("video_name")
    write_clip(Path("clips/A_1.mp4"), seed=1)  # mended
    write_clip(Path("clips/deep/B_1.mp4"), seed=9)  # changed
    write_clip(Path("clips/new.mp4"), seed=10)
    write_prompts(place, prompts_of(place) | {"A_2.mp4": "another prompt", "new.mp4": "a dog"})
    done = engine.fill(str(out))
    assert sorted(engine.read) == ["A_1.mp4", "A_2.mp4", "B_1.mp4", "new.mp4"]
    assert (done.rows, done.kept, done.failed) == (7, 3, 0)
    after = read(out).set_index("video_name")
    unchanged = ["A_0.mp4", "B_0.mp4", "B_2.mp4"]
    assert after.loc[unchanged].equals(before.loc[unchanged]) or suffix == ".csv"
    assert (
        after.loc[["A_2.mp4", "B_1.mp4"], "Overall_predicted"] != before["Overall_predicted"][["A_2.mp4", "B_1.mp4"]]
    ).all()
    engine.fill(f"whole{suffix}")
    assert out.read_bytes() == Path(f"whole{suffix}").read_bytes()


def test_with_nothing_to_do_the_table_is_not_touched(place, engine):
    engine.fill("scores.parquet")
    before = os.stat("scores.parquet")
    engine.fill("scores.parquet")
    assert (engine.read, os.stat("scores.parquet").st_ino) == ([], before.st_ino)


def test_rows_that_are_not_asked_for_any_more_are_left_out(place, engine):
    engine.fill("scores.csv")
    prompts = prompts_of(place)
    del prompts["A_0.mp4"]
    write_prompts(place, prompts)
    engine.fill("scores.csv")
    assert (engine.read, list(read(Path("scores.csv"))["video_name"])) == ([], sorted(prompts))


# What is refused


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_of_another_model_is_refused_and_overwritten_when_asked(place, engine, suffix):
    out = Path(f"scores{suffix}")
    engine.fill(str(out), model="models:/qualivision/1")
    before = out.read_bytes()
    way_out = r"made by models:/qualivision/1, and this is models:/qualivision/2; take another name, or --overwrite"
    with pytest.raises(ScoreTableError, match=way_out):
        engine.fill(str(out), model="models:/qualivision/2")
    assert (engine.read, out.read_bytes()) == ([], before)
    with pytest.raises(KeyboardInterrupt):
        engine.fill(str(out), model="models:/qualivision/2", overwrite=True, stop_after=2)
    assert out.read_bytes() == before
    engine.fill(str(out), model="models:/qualivision/2")  # goes on with what it was told then
    assert len(engine.read) == 4
    assert set(read(out)["model"]) == {"models:/qualivision/2"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_of_an_earlier_version_is_refused_and_overwritten_when_asked(place, engine, suffix):
    out = Path(f"scores{suffix}")
    engine.fill(str(out))
    old = read(out).drop(columns=["distance", "warning"])
    match suffix:
        case ".parquet":
            old.to_parquet(out, index=False)
        case ".csv":
            old.to_csv(out, index=False)
        case _:
            old.to_json(out, orient="records", lines=True)
    with pytest.raises(
        ScoreTableError, match=r"earlier version, without distance, warning\); take another name, or --o"
    ):
        engine.fill(str(out))
    engine.fill(str(out), overwrite=True)
    assert tuple(read(out).columns) == COLUMNS


def test_rows_of_an_earlier_version_in_a_journal_are_made_again(place, engine):
    engine.fill("whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        engine.fill("scores.jsonl", stop_after=3)
    journal = Path("scores.jsonl.journal")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    for row in rows[1:3]:
        del row["distance"], row["warning"]
    journal.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    engine.fill("scores.jsonl")
    assert len(engine.read) == 6 - 1
    assert Path("scores.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_the_journal_of_another_model_is_refused(place, engine):
    with pytest.raises(KeyboardInterrupt):
        engine.fill("scores.csv", model="one", stop_after=2)
    with pytest.raises(ScoreTableError, match=r"scores\.csv\.journal: was made by one, and this is two"):
        engine.fill("scores.csv", model="two")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "content", [b"", b"video_name,Prompt\na.mp4,a cat\n", b'{"video_name": 1}\n', b"PAR1\0PAR1", b"\xff"]
)
def test_a_file_that_is_no_table_of_scores_is_refused_and_stays(place, engine, suffix, content):
    out = Path(f"scores{suffix}")
    out.write_bytes(content)
    if (content, suffix) == (b"", ".jsonl"):
        pytest.skip("an empty file is a table of JSON lines, without rows")
    with pytest.raises(ScoreTableError, match=r"is no table of scores .*take another name, or --overwrite"):
        engine.fill(str(out))
    assert out.read_bytes() == content
    engine.fill(str(out), overwrite=True)
    assert len(read(out)) == 6


def test_a_second_run_on_one_table_is_refused(place, engine):
    with FileLock(".scores.csv.lock"), pytest.raises(ScoreTableError, match=r"scores\.csv: another run is writing it"):
        engine.fill("scores.csv")


# Hostile files and processes


def test_a_file_that_takes_its_process_with_it_costs_itself_alone(place, scorer, monkeypatch):
    for what in ("crashes", "hangs", "swells", "crashes once"):
        Path(f"clips/{what}.mp4").write_bytes(what.encode())
    monkeypatch.setattr(decoding, "_read", hostile_decoder.read)
    decoders = Decoders(DecodeSettings(seconds=3.0, memory_gb=4.0), workers=2)
    names = ["crashes", "hangs", "A_1", "swells", "crashes once", "A_2"]
    try:
        found = dict(judged(scorer, decoders, ((name, Asked("a cat", f"clips/{name}.mp4")) for name in names)))
    finally:
        decoders.close()
    assert {name: str(err) for name, err in found.items() if not isinstance(err, Scores)} == {
        "crashes": "clips/crashes.mp4: crashes the process that reads it (SIGSEGV), twice",
        "hangs": "clips/hangs.mp4: takes longer than 3 s, twice",
        "swells": "clips/swells.mp4: takes more memory than decode.memory_gb allows",
    }


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "qualivision.cli", "score", *map(str, arguments)]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_the_command_killed_at_any_moment_goes_on_and_ends_as_one_that_was_not(place, checkpoint, monkeypatch):
    Path("clips/A_1.mp4").write_bytes(b"no video")
    more = {f"C_{number:02}.mp4": f"A dog {number}" for number in range(30)}
    for name in more:
        os.link("clips/A_0.mp4", f"clips/{name}")
    write_prompts(place, prompts_of(place) | more)
    call = command("clips", "--prompts", "prompts.csv", "--model", checkpoint)
    run = subprocess.Popen([*call, "--out", "scores.parquet"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    journal = Path("scores.parquet.journal")
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        assert run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert not Path("scores.parquet").exists()
    resumed = subprocess.run([*call, "--out", "scores.parquet"], env=ENVIRONMENT, capture_output=True, text=True)
    said = resumed.stderr.splitlines()
    assert resumed.returncode == 1
    said = [line for line in said if not line.startswith("score: ")]  # progress, where the machine is busy
    assert len(said) == 1 and said[0].startswith("clips/A_1.mp4: can't be decoded")
    assert "were there" in resumed.stdout
    monkeypatch.setattr(sys, "argv", ["qualivision", *call[3:], "--out", "whole.parquet"])
    with pytest.raises(SystemExit):
        cli.main()
    assert Path("scores.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(("scores", ".scores"))) == [
        ".scores.parquet.lock",
        "scores.parquet",
    ]


# A disk that fills up


@contextmanager
def disk_of(room: int):
    """No file may be larger, which the system says as it says that a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(("full_at", "kept"), [("scores.parquet.journal", 4), ("scores.parquet", 6)])
def test_a_full_disk_is_one_line_and_nothing_done_is_lost(place, engine, full_at, kept):
    engine.fill("whole.parquet")
    room = 2000 if full_at.endswith("journal") else os.stat("whole.parquet").st_size - 1
    with disk_of(room), pytest.raises(OSError, match="what was scored is kept") as full:
        engine.fill("scores.parquet")
    assert (full.value.errno, str(full.value).partition(":")[0]) == (errno.EFBIG, f"[Errno 27] can't write {full_at}")
    assert not Path("scores.parquet").exists() and not list(Path().glob(".*.new"))
    engine.fill("scores.parquet")
    assert len(engine.read) == 6 - kept
    assert Path("scores.parquet").read_bytes() == Path("whole.parquet").read_bytes()


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clips", "--prompt", "a cat"], "clips is a folder: its videos need --prompts FILE.csv"),
        (["clips", "--prompts", "prompts.csv", "--out", "scores.xlsx"], "is none of .parquet, .csv, .jsonl"),
        (["clips", "--prompts", "prompts.csv", "--overwrite"], "nothing to overwrite without --out"),
        (["clips", "--prompts", "prompts.csv", "--json", "--out", "a.csv"], "is --out FILE.jsonl"),
        (["clips", "--prompts", "prompts.csv", "--batch", "0"], "greater than or equal to 1"),
    ],
)
def test_a_wrong_call_exits_2_and_says_what_is_wrong(place, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["qualivision", "score", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_without_out_scores_are_printed_in_the_order_given_by_guarded_processes(place, checkpoint, monkeypatch, capsys):
    Path("clips/A_1.mp4").write_bytes(b"no video")
    given = ["clips/A_2.mp4", "clips/A_1.mp4", "clips/A_0.mp4", "clips/deep"]
    call = ["score", *given, "--prompts", "prompts.csv", "--model", str(checkpoint), "--json"]
    monkeypatch.setattr(sys, "argv", ["qualivision", *call])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert left.value.code == 1
    shown = [json.loads(line)["video"] for line in out.splitlines()]
    assert shown == ["clips/A_2.mp4", "clips/A_0.mp4", *(f"clips/deep/B_{number}.mp4" for number in range(3))]
    assert "clips/A_1.mp4: can't be decoded" in err
