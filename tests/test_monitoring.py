"""The command and what it rests on: which clips are drawn, what is done only once, what it says and how it exits."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_models import write_clip

from qualivision import batch, cli, environment, monitoring, registry
from qualivision.evaluation.metrics import PREDICTED_COLUMNS
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, labels_path, videos_dir
from qualivision.monitoring import drift, opened, windows
from qualivision.monitoring.drift import Change, Figure, Side, Unusual
from qualivision.monitoring.prompts import FIGURE as PROMPTS
from qualivision.monitoring.report import Report, number, phrase
from qualivision.score_table import COLUMNS, ScoreTableError
from qualivision.scoring import Scores
from qualivision.settings import MonitorSettings, SettingsError

ROOT = Path(__file__).parents[1]
CHAMPION = "models:/qualivision/3"
RULES = MonitorSettings()
NOW = 1_800_000_000 * 10**9
DAY = 86_400 * 10**9


def row(name: str, **changes: object) -> dict[str, object]:
    values = {"video_name": name, "Prompt": f"prompt of {name}", "model": CHAMPION, "error": "", "size": 5}
    return values | {"mtime_ns": NOW - DAY} | dict.fromkeys(PREDICTED_COLUMNS, 3.0) | changes


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_video(path: Path, text: str = "video", *, mtime_ns: int = NOW - DAY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def current(tables, folders=(), rules=RULES) -> windows.Window:
    return windows.current(tables, folders, CHAMPION, rules, now_ns=NOW)


def names(window: windows.Window) -> list[str]:
    return sorted(window.clips["video_name"])


def test_the_current_window_is_what_the_champion_scored_of_new_videos(tmp_path):
    write_table(
        tmp_path / "scores" / "deep" / "a.csv",
        [
            row("good.mp4"),
            row("failed.mp4", error="is empty", **dict.fromkeys(PREDICTED_COLUMNS, "")),
            row("old.mp4", mtime_ns=NOW - 8 * DAY),
            row("other.mp4", model="models:/qualivision/2"),
            row("gone.mp4", size="", mtime_ns="", error="no such file"),
        ],
    )
    write_table(tmp_path / "scores" / "b.csv", [row("good.mp4"), row("good.mp4", size=6)])
    write_table(tmp_path / "scores" / ".hidden.csv", [row("hidden.mp4")])
    (tmp_path / "scores" / "prompts.csv").write_text("video_name,Prompt\na.mp4,A cat\n")
    found = current([tmp_path / "scores"])
    assert names(found) == ["failed.mp4", "good.mp4", "good.mp4"]  # the second of another size is another video
    assert found.drawn_from == 3 and found.prompts == 2
    assert found.clips.set_index("video_name").loc["failed.mp4", ["not scored", "words"]].tolist() == [1.0, 3.0]
    assert found.clips.set_index("video_name").loc["failed.mp4", list(DIMENSIONS)].isna().all()
    notes = "\n".join(found.notes)
    assert "rows left out, of videos older than 7 days: 1" in notes
    assert "rows left out, scored by another model: 1" in notes
    assert "rows left out, of files that were not there: 1" in notes
    assert f"left out: {tmp_path}/scores/prompts.csv: is no table of scores" in notes
    assert "their pictures are not looked at" in notes


def test_a_folder_without_tables_is_an_empty_window_that_says_how_to_get_one(tmp_path):
    found = current([tmp_path / "nowhere"])
    assert len(found.clips) == 0 and found.prompts == 0
    assert found.notes[0] == f"{tmp_path}/nowhere: holds no table of scores; {windows.HOW_TO_SCORE}"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, windows.MonitorError, "no such table of scores; `qualivision score"),
        (lambda path: path.write_text("a,b\n1,2\n"), ScoreTableError, "is no table of scores (its columns are a, b)"),
    ],
)
def test_a_table_that_is_named_has_to_be_one(tmp_path, make, error, message):
    make(tmp_path / "scores.csv")
    with pytest.raises(error) as raised:
        current([tmp_path / "scores.csv"])
    assert str(raised.value).startswith(f"{tmp_path}/scores.csv: ") and message in str(raised.value)


def test_a_folder_of_videos_that_is_named_has_to_be_there(tmp_path):
    table = write_table(tmp_path / "scores.csv", [row("a.mp4")])
    with pytest.raises(windows.MonitorError, match="nowhere: no such folder of videos"):
        current([table], [tmp_path / "nowhere"])


def test_a_draw_is_a_sample_that_stays_when_others_come(tmp_path):
    rules = RULES.but(clips=20, min_clips=10)
    rows = [row(f"{number}.mp4") for number in range(200)]
    first = names(current([write_table(tmp_path / "a.csv", rows)], rules=rules))
    again = names(current([write_table(tmp_path / "a.csv", rows[::-1])], rules=rules))
    more = names(
        current([write_table(tmp_path / "a.csv", [*rows, *(row(f"new{n}.mp4") for n in range(20))])], rules=rules)
    )
    other = names(current([tmp_path / "a.csv"], rules=rules.but(seed=1)))
    assert first == again and len(first) == 20
    assert len(set(first) & set(more)) >= 15 and first != other
    assert np.mean([int(name[:-4]) for name in first]) == pytest.approx(100, abs=40)


def test_a_video_is_found_by_name_where_it_is_as_it_was_scored(tmp_path):
    below = write_video(tmp_path / "a" / "deep" / "1.mp4")
    alone = write_video(tmp_path / "b" / "deep" / "2.mp4")
    write_video(tmp_path / "a" / "2.mp4", "longer than it was")
    write_video(tmp_path / "a" / "3.mp4", mtime_ns=NOW)
    (tmp_path / "a" / "4.mp4").symlink_to(tmp_path / "nothing")
    rows = [row("deep/1.mp4"), row("2.mp4"), row("3.mp4"), row("4.mp4"), row("5.mp4")]
    table = write_table(tmp_path / "scores.csv", rows)
    found = current([table], [tmp_path / "a", tmp_path / "b"])
    paths = dict(zip(found.clips["video_name"], found.clips["path"], strict=True))
    assert paths == {"deep/1.mp4": str(below), "2.mp4": str(alone), "3.mp4": "", "4.mp4": "", "5.mp4": ""}
    [note] = found.notes
    assert note.startswith("videos that are not in ") and "as they were scored: 3 of 5: " in note


def test_two_videos_of_one_name_are_told_apart(tmp_path):
    first, second = write_video(tmp_path / "a" / "1.mp4"), write_video(tmp_path / "b" / "1.mp4", "other")
    rows = [row("1.mp4"), row("1.mp4", mtime_ns=NOW - 2 * DAY)]
    os.utime(second, ns=(NOW - 2 * DAY,) * 2)
    found = current([write_table(tmp_path / "scores.csv", rows)], [tmp_path])
    assert sorted(found.clips["path"]) == [str(first), str(second)]


# From here on with videos, and a champion that scores by their brightness.


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """`clips` and `shifted`, twelve each with `*.csv`, and a data set of twelve rated test clips."""
    folder = tmp_path_factory.mktemp("library")
    shutil.copy(ROOT / "params.yaml", folder)
    data = folder / "data"
    for where, count, side, first in (("clips", 12, 64, 0), ("shifted", 12, 96, 50), ("data", 24, 64, 100)):
        videos = videos_dir(data, "test") if where == "data" else folder / where
        videos.mkdir(parents=True)
        rows = []
        for place in range(count):
            name = f"{where}{place:02d}.mp4"
            write_clip(videos / name, seed=first + place, side=side)
            rows.append([name, f"A {('cat', 'dog', 'cow')[place % 3]} in place {place // 2}", *([3.0] * 5)])
        table = labels_path(data, "test") if where == "data" else folder / f"{where}.csv"
        pd.DataFrame(rows, columns=["video_name", "Prompt", *MOS_COLUMNS]).to_csv(table, index=False)
    return folder


class Work:
    """What was done in a project: clips that were scored, and videos that were looked at."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.looked = 0


@pytest.fixture
def project(library, tmp_path, monkeypatch) -> Path:
    shutil.copytree(library, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "STATE", tmp_path / "state")
    monkeypatch.setattr(registry, "version_of", lambda alias, settings: 3)
    monkeypatch.setattr(drift, "PERMUTATIONS", 999)
    monkeypatch.setattr("qualivision.monitoring.prompts.PERMUTATIONS", 999)
    return tmp_path


@pytest.fixture
def work(project, monkeypatch) -> Work:
    done = Work()

    class Here:
        def __init__(self, model, limits) -> None:
            assert model == CHAMPION

        def __call__(self, videos):
            for name, asked in videos:
                done.scored.append(name)
                value = 3.0 + (len(name) + ord(name[-5])) % 7 / 10
                yield name, Scores(asked.path, asked.prompt, dict.fromkeys(DIMENSIONS, value), {}, CHAMPION, 0.5)

    def looked(self, videos, *, advance):
        done.looked += len(videos := list(videos))
        side = {path: 96.0 if "shifted" in path.name else 64.0 for path in videos}
        lots = np.random.default_rng(0)
        return {path: {"width": side[path], "height": side[path], "motion": lots.normal()} for path in videos}, {}

    monkeypatch.setattr(batch, "Here", Here)
    monkeypatch.setattr("qualivision.monitoring.figures.Album.look", looked)
    return done


def score(project: Path, where: str, *, failed: int = 0) -> None:
    """As `qualivision score WHERE --prompts WHERE.csv --out scores/WHERE.csv` does."""
    rows = []
    with (project / f"{where}.csv").open(newline="") as file:
        for number, given in enumerate(csv.DictReader(file)):
            found = (project / where / given["video_name"]).stat()
            value = {"error": "is damaged", **dict.fromkeys(PREDICTED_COLUMNS, "")} if number < failed else {}
            value = value or dict.fromkeys(PREDICTED_COLUMNS, 3.0 + number % 7 / 10)
            where_it_stands = {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
            rows.append(row(given["video_name"], Prompt=given["Prompt"], **where_it_stands, **value))
    write_table(project / "scores" / f"{where}.csv", rows)


@pytest.fixture
def call(monkeypatch, capsys):
    """`call("monitor", ...)` runs the entry point here; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["qualivision", *arguments])
        try:
            cli.main()
        except SystemExit as left:
            return left.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_like_clips_pass_and_the_reference_is_scored_once(project, call, work):
    score(project, "clips")
    code, out, err = call("monitor", "--videos", "clips")
    assert (code, err) == (0, "")
    assert "monitor: no drift: 12 clips against 24 of the reference" in out
    assert len(work.scored) == 24 and work.looked == 36
    written = json.loads((project / "reports" / "drift.json").read_text())
    assert (written["verdict"], written["retraining_due"], written["drifted"]) == ("no drift", False, [])
    assert written["champion"] == CHAMPION and written["clips"] == {"reference": 24, "current": 12}
    call("monitor", "--videos", "clips")
    assert len(work.scored) == 24
    (project / "data" / "test" / "videos" / "data00.mp4").write_bytes(b"other")
    call("monitor", "--videos", "clips")
    assert work.scored[24:] == ["data00.mp4"]


def test_another_champion_gets_a_reference_of_its_own(project, call, work, monkeypatch):
    score(project, "clips")
    call("monitor", "--videos", "clips")
    monkeypatch.setattr(registry, "version_of", lambda alias, settings: 4)
    code, out, _ = call("monitor", "--videos", "clips")
    assert code == 0 and len(work.scored) == 24  # nothing was scored by version 4 yet
    assert "too small for a verdict: the current window has 0 clips of 0 prompts" in out
    assert "rows left out, scored by another model: 12" in out


def test_a_drift_is_named_drawn_and_exits_3(project, call, work):
    score(project, "shifted")
    code, out, err = call("monitor", "--videos", "shifted")
    assert (code, err) == (3, "")
    assert "width: higher (median 64 -> 96 px)" in out
    assert "drift, a retraining is due: width: higher (median 64 -> 96 px); height: higher" in out
    assert "without new ones it gives the same model" in out and re.search(r"shifted\d\d.mp4: ", out)
    page = (project / "reports" / "drift.html").read_text()
    assert "data:image/png;base64," in page and "<script" not in page
    written = json.loads((project / "reports" / "drift.json").read_text())
    assert written["retraining_due"] and len(written["unusual"]) == monitoring.SUGGESTED


def test_a_drift_below_the_threshold_is_told_and_exits_0(project, call, work):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("open_inputs: 2", "open_inputs: 3"))
    score(project, "shifted")
    code, out, _ = call("monitor", "--videos", "shifted")
    assert code == 0 and "drift, not enough to open a retraining: width: higher" in out


def test_videos_that_cannot_be_scored_are_told_and_open_nothing(project, call, work):
    score(project, "clips", failed=6)
    code, out, _ = call("monitor", "--videos", "clips")
    assert code == 0 and "drift that no retraining mends: not scored: more (0.0% -> 50.0%)" in out


def test_without_videos_at_hand_prompts_and_scores_are_compared(project, call, work):
    score(project, "clips")
    code, out, _ = call("monitor")
    assert code == 0 and "no drift" in out and "their pictures are not looked at" in out
    assert work.looked == 24  # the reference's


def test_a_window_that_is_too_small_is_said_at_once(project, call, work):
    score(project, "clips")
    code, out, _ = call("monitor", "--videos", "clips", "--days", "1e-9")
    assert code == 0 and work.scored == [] and work.looked == 0
    assert "too small for a verdict: the current window has 0 clips" in out and "older than 1e-09 days" in out
    table = pd.read_csv(labels_path(project / "data", "test"))
    table[:9].to_csv(labels_path(project / "data", "test"), index=False)
    code, out, _ = call("monitor", "--videos", "clips")
    assert code == 0 and "too small for a verdict: the reference has 9 clips" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "5"], "monitor: clips: Input should be greater than or equal to 20, got 5"),
        (["--days", "0"], "monitor: days: Input should be greater than 0, got 0.0"),
        (["nowhere.csv"], "nowhere.csv: no such table of scores; `qualivision score"),
    ],
)
def test_what_cannot_be_done_exits_1_with_one_line(project, call, work, arguments, message):
    code, out, err = call("monitor", *arguments)
    assert (code, out) == (1, "") and err.startswith(message) and err.count("\n") == 1


def test_without_ratings_or_champion_there_is_nothing_to_compare_with(project, call, work, monkeypatch):
    score(project, "clips")
    table = pd.read_csv(labels_path(project / "data", "test"))
    table[["video_name", "Prompt"]].to_csv(labels_path(project / "data", "test"), index=False)
    code, _, err = call("monitor")
    assert code == 1 and err.startswith("data/test/test_labels.csv: has no MOS, so no model was judged on it")
    monkeypatch.setattr(registry, "version_of", lambda alias, settings: None)
    code, _, err = call("monitor")
    assert code == 1 and err.startswith("there is no champion yet")


@pytest.mark.slow
def test_real_videos_are_decoded_once_and_a_damaged_one_costs_itself_alone(project, call, monkeypatch):
    class Here:
        def __init__(self, model, limits) -> None: ...

        def __call__(self, videos):
            for name, asked in videos:
                yield name, Scores(asked.path, asked.prompt, dict.fromkeys(DIMENSIONS, 3.3), {}, CHAMPION, 0.5)

    monkeypatch.setattr(batch, "Here", Here)
    for folder in ("shifted", "data/test/videos"):
        for path in (project / folder).iterdir():
            os.utime(path, (time.time() - 60,) * 2)
    (project / "shifted" / "shifted03.mp4").write_bytes(b"no video")
    time.sleep(1.1)
    score(project, "shifted")
    code, out, err = call("monitor", "--videos", "shifted")
    assert (code, err) == (3, "") and "width: higher (median 64 -> 96 px)" in out
    assert "videos that can't be looked at: 1: shifted03.mp4 (can't be decoded" in out
    started = time.monotonic()
    monkeypatch.setattr("qualivision.prompts.PromptEncoder.__init__", lambda *_: pytest.fail("an encoder is loaded"))
    assert call("monitor", "--videos", "shifted")[0] == 3
    assert time.monotonic() - started < 10


# What is said.


def change(name: str = "sharpness", unit: str = "grey levels", kind: str = "input", **values: object) -> Change:
    sides = {"reference": Side(200, 0.1, 0.312, 0.9), "current": Side(50, 0.05, 0.1249, 1234.5)}
    return Change(Figure(name, unit, kind=kind), **sides | {"distance": 0.5, "p": 0.001, "drifted": True} | values)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (change(way="lower"), "sharpness: lower (median 0.312 -> 0.125 grey levels)"),
        (change(way="more varied"), "sharpness: more varied (most 0.1 to 0.9 -> 0.05 to 1234 grey levels)"),
        (change("width", "px", way="higher", current=Side(9, 1, 1280, 1280)),
         "width: higher (median 0.312 -> 1280 px)"),
        (change(way="higher", current=Side(9, 0.25, 0.32, 0.8)),  # it is not the median that moved
         "sharpness: higher (most 0.1 to 0.9 -> 0.25 to 0.8 grey levels)"),
        (change("words", "", way="lower"), "words: lower (median 0.312 -> 0.125)"),
        (replace(change(way="of another kind", distance=0.974), figure=PROMPTS),
         "prompts: of another kind (told apart with an AUC of 0.97)"),
        (change("not scored", "", "unscored", way="more", reference=Side(9, middle=0.0), current=Side(9, middle=0.125)),
         "not scored: more (0.0% -> 12.5%)"),
    ],
)  # fmt: skip
def test_what_drifted_is_said_in_words(one, words):
    assert phrase(one) == words


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (0.12345, "0.123"), (99.94, "99.9"), (1280.0, "1280"), (-0.5, "-0.5")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def report(*changes: Change, rules: MonitorSettings = RULES, **values: object) -> Report:
    unusual = (Unusual("a|b*<i>.mp4", 2.5, Figure("motion"), 7.0),)
    given = {"champion": CHAMPION, "when": "now", "clips": (200, 50), "prompts": (40, 10), "unusual": unusual}
    return Report(changes=changes, notes=("a | note",), rules=rules, **given | values)


@pytest.mark.parametrize(
    ("kinds", "due"),
    [
        ([], False),
        (["input"], False),
        (["input", "input"], True),
        (["input", "prompts"], True),
        (["score"], True),
        (["unscored", "unscored"], False),
        (["unscored", "input"], False),
    ],
)
def test_a_retraining_is_due_when_so_many_scores_or_inputs_have_drifted(kinds, due):
    made = report(*(change(str(place), kind=kind, way="lower") for place, kind in enumerate(kinds)))
    assert made.due is due
    patient = RULES.but(open_scores=2, open_inputs=3)
    assert report(*made.changes, rules=patient).due is False


def test_the_report_is_markdown_and_html_in_which_names_stay_names():
    made = report(change(way="lower"), change("motion", drifted=False, way="higher"))
    text = made.as_markdown(b"png")
    assert "| sharpness (grey levels) | lower | 0.312 \\[0.1, 0.9\\] |" in text
    assert "![each drifted figure, reference against current](data:image/png;base64,cG5n)" in text
    assert "- a|b\\*\\<i\\>.mp4: 2.5 deviations away" in text and "- a | note" in text
    assert "| motion (grey levels) |  | 0.312" in text
    page = made.as_html(None)
    assert "a|b*&lt;i&gt;.mp4" in page and "<i>" not in page and "<img" not in page


def test_the_picture_holds_what_drifted_and_is_none_without():
    values = {"sharpness": (np.arange(20.0), np.full(9, 3.0))}
    one = change(way="lower")
    assert monitoring.picture(report(one, values=values)).startswith(b"\x89PNG")  # type: ignore[union-attr]
    assert monitoring.picture(report(replace(one, drifted=False))) is None
    many = [change(str(place), way="lower") for place in range(15)]
    constant = {str(place): (np.full(9, 5.0), np.full(9, 5.0)) for place in range(15)}
    assert monitoring.picture(report(*many, values=constant)) is not None


def test_a_drift_is_news_once_a_champion(tmp_path):
    assert opened.news("1", ["noise lower", "width higher"], tmp_path) == ["noise lower", "width higher"]
    opened.remember("1", ["noise lower", "width higher"], tmp_path, run="a-run")
    assert opened.news("1", ["width higher"], tmp_path) == []
    assert opened.news("1", ["noise higher", "width higher"], tmp_path) == ["noise higher"]
    assert opened.news("2", ["width higher"], tmp_path) == ["width higher"]
    opened.remember("1", ["noise higher"], tmp_path, run="another")
    assert [one.run for one in opened.opened(tmp_path)] == ["a-run", "another"]
    (tmp_path / opened.FILE).write_text("[{]")
    assert opened.news("1", ["width higher"], tmp_path) == ["width higher"]


@pytest.mark.parametrize("wrong", [{"clips": 19}, {"distance": 1.0}, {"min_clips": 300}, {"auc": 0.4}, {"days": -1}])
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(SettingsError, match=f"monitor: .*{next(iter(wrong))}"):
        RULES.but(**wrong)
    assert RULES.but(clips=None) == RULES
