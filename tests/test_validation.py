"""Faults of a data set are found before anything is trained: all in one report, with file, line and value."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from qualivision.labels import MOS_COLUMNS, NO_MOS, SPLITS, labels_path, read_labels, videos_dir
from qualivision.settings import ValidateSettings
from qualivision.validation import Finding, ValidationReport, steps, text, validate, videos, write_report
from qualivision.validation.clips import check_clips
from qualivision.validation.report import shown
from qualivision.validation.split import check_split, differences
from qualivision.validation.suites import Suites
from qualivision.validation.tables import Table
from qualivision.video import VideoInfo

BOUNDS = ValidateSettings(min_frames=2, min_side_px=64, max_side_px=128, max_seconds=1.0, max_prompt_characters=40)
HEADER = ["video_name", "Prompt", *MOS_COLUMNS]
TRAIN = "data/train/labels/train_labels.csv"
VAL = "data/val/labels/val_labels.csv"
TEST = "data/test/test_labels.csv"


def make_clip(path: Path, *, frames: int = 4, side: int = 64, rate: int = 8) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = side
        for grey in range(frames):
            picture = np.full((side, side, 3), grey * 20, np.uint8)
            picture[: side // 2] += 40  # not a single colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "good": make_clip(folder / "good.mp4"),
        "one-frame": make_clip(folder / "one.mp4", frames=1),
        "small": make_clip(folder / "small.mp4", side=32),
        "large": make_clip(folder / "large.mp4", side=160),
        "long": make_clip(folder / "long.mp4", frames=10, rate=5),
    }


@dataclass
class DataSet:
    """A good data set, three rows a split, to do harm to. Row 0 is line 2 of its file."""

    root: Path
    clips: dict[str, Path]
    rows: dict[str, list[list[str]]]

    def table(self, split: str) -> Path:
        return labels_path(self.root, split)

    def video(self, split: str, name: str) -> Path:
        return videos_dir(self.root, split) / name

    def write(self) -> None:
        for split, rows in self.rows.items():
            with self.table(split).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)

    def check(self, **options: object) -> ValidationReport:
        return validate(self.root, **{"bounds": BOUNDS, **options})  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path, clips: dict[str, Path]) -> DataSet:
    root = tmp_path / "data"
    rows = {}
    for split in SPLITS:
        videos_dir(root, split).mkdir(parents=True)
        labels_path(root, split).parent.mkdir(parents=True, exist_ok=True)
        names = [f"A_{split}{number}.mp4" for number in range(3)]
        for name in names:
            shutil.copy(clips["good"], videos_dir(root, split) / name)
        marks = ["1", "2.333", "5", "4.0", "3"]
        rows[split] = [HEADER, *([name, f"a prompt, {name[2:-4]}", *marks] for name in names)]
    whole = DataSet(root, clips, rows)
    whole.write()
    return whole


def faults(report: ValidationReport) -> tuple[Finding, ...]:
    return report.errors + report.warnings


def brief(report: ValidationReport) -> list[tuple[str, str, int | None, str]]:
    return [(found.check, found.file, found.row, found.value) for found in faults(report)]


def test_a_good_data_set_passes_and_can_be_read(data: DataSet) -> None:
    report = data.check()
    assert faults(report) == ()
    assert report.ok
    assert report.counts == {split: {"rows": 3, "videos": 3} for split in SPLITS}
    for split in SPLITS:
        assert len(read_labels(data.table(split))) == 3


def test_a_test_table_may_lack_all_mos_columns_but_not_some(data: DataSet) -> None:
    data.rows["test"] = [row[:2] for row in data.rows["test"]]
    data.write()
    assert faults(data.check()) == ()
    data.rows["test"] = [[*row, "4"] for row in data.rows["test"]]
    data.rows["test"][0][-1] = "Overall_MOS"
    data.write()
    assert brief(data.check()) == [("missing-column", TEST, 1, column) for column in sorted(MOS_COLUMNS[:4])]


def test_more_columns_a_byte_order_mark_and_blank_lines_are_fine(data: DataSet) -> None:
    data.rows["train"] = [[*row, "more"] for row in data.rows["train"]]
    data.write()
    text = data.table("train").read_text(encoding="utf-8")
    data.table("train").write_text(text + "\n   \n", encoding="utf-8-sig")
    assert faults(data.check()) == ()
    assert len(read_labels(data.table("train"))) == 3


@pytest.mark.parametrize(
    ("column", "cell", "check"),
    [
        ("Overall_MOS", "7", "mos-range"),
        ("Overall_MOS", "NaN", "mos-missing"),
        ("Overall_MOS", "abc", "mos-not-a-number"),
        ("Prompt", " ", "missing-prompt"),
        ("video_name", "", "missing-video-name"),
    ],
)
def test_a_bad_cell_alone_is_found(data: DataSet, column: str, cell: str, check: str) -> None:
    data.rows["train"][2][HEADER.index(column)] = cell
    data.write()
    report = data.check()
    assert brief(ValidationReport(report.errors, {})) == [(check, TRAIN, 3, cell)]
    # A clip that lost its row is the only other thing to say.
    assert len(report.warnings) == (column == "video_name")


BAD_CELLS = [
    ("Overall_MOS", "0.999", "mos-range"),
    ("Overall_MOS", "5.0001", "mos-range"),
    ("Temporal_MOS", "-3", "mos-range"),
    ("Temporal_MOS", "1e999", "mos-range"),
    ("Overall_MOS", "", "mos-missing"),
    ("Overall_MOS", "  ", "mos-missing"),
    # what float() or pandas would take for a number
    ("Overall_MOS", "1_0", "mos-not-a-number"),
    ("Overall_MOS", "True", "mos-not-a-number"),
    ("Overall_MOS", "٣", "mos-not-a-number"),
    ("Overall_MOS", "3,5", "mos-not-a-number"),
    ("Overall_MOS", "inf", "mos-not-a-number"),
    ("Prompt", "", "missing-prompt"),
    ("Prompt", "\u3000\u00a0", "missing-prompt"),
    ("Prompt", "x" * 41, "prompt-length"),
    ("video_name", "", "missing-video-name"),
    ("video_name", "../A_train1.mp4", "bad-video-name"),
    ("video_name", "sub\\A_train1.mp4", "bad-video-name"),
    ("video_name", "A_train1.mp4 ", "bad-video-name"),
    ("video_name", "A_gone.mp4", "row-without-video"),
]


def test_every_bad_cell_is_found_with_line_and_text(data: DataSet) -> None:
    for number, (column, cell, _) in enumerate(BAD_CELLS):
        row = [f"B_{number}.mp4", f"prompt {number}", *"12345"]
        shutil.copy(data.clips["good"], data.video("train", row[0]))
        row[HEADER.index(column)] = cell
        data.rows["train"].append(row)
    data.write()
    expected = [(check, TRAIN, 5 + number, cell) for number, (_, cell, check) in enumerate(BAD_CELLS)]
    assert brief(ValidationReport(data.check(workers=1).errors, {})) == sorted(expected)


def test_good_cells_that_look_odd_are_fine_and_read_as_numbers(data: DataSet) -> None:
    data.rows["train"][1][2:] = [" 3", "+3", "1e0", "5.", "05"]
    data.rows["train"][2][1] = 'a "quoted", très long\tprompt'
    data.write()
    assert faults(data.check()) == ()
    assert list(read_labels(data.table("train"))[list(MOS_COLUMNS)].iloc[0]) == [3, 3, 1, 5, 5]


def test_what_counts_as_no_mos_is_what_reading_takes_for_none(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [f"a.mp4,None,{text},1,1,1,1" for text in NO_MOS]
    table.write_text("\n".join([",".join(("video_name", "Prompt", *MOS_COLUMNS)), *rows]))
    read = read_labels(table)
    assert pd.isna(read[MOS_COLUMNS[0]]).all()
    assert (read["Prompt"] == "None").all()


def test_an_ending_that_is_no_videos_is_refused_though_ffmpeg_would_draw_it(data: DataSet) -> None:
    data.rows["val"][1][0] = "notes.txt"
    data.write()
    data.video("val", "A_val0.mp4").unlink()
    data.video("val", "notes.txt").write_text("hello\n" * 200)
    assert brief(data.check()) == [("video-ending", VAL, 2, "notes.txt")]


def test_lines_are_counted_as_an_editor_does_when_a_prompt_spans_lines(data: DataSet) -> None:
    data.rows["train"][1][1] = "a prompt\nof three\u2028\nlines"
    data.rows["train"][3][6] = "9"
    data.write()
    assert brief(data.check()) == [("mos-range", TRAIN, 6, "9")]
    lines = data.table("train").read_bytes().decode().replace("\r\n", "\n").split("\n")
    assert lines[6 - 1].endswith(",9")


def test_a_missing_column_is_named_and_the_others_are_still_checked(data: DataSet) -> None:
    data.rows["train"] = [row[:-1] for row in data.rows["train"]]
    data.rows["train"][1][2] = "7"
    data.write()
    assert brief(data.check()) == [("missing-column", TRAIN, 1, "Overall_MOS"), ("mos-range", TRAIN, 2, "7")]


def test_without_a_video_name_column_no_file_is_called_superfluous(data: DataSet) -> None:
    data.rows["train"] = [row[1:] for row in data.rows["train"]]
    data.write()
    assert brief(data.check()) == [("missing-column", TRAIN, 1, "video_name")]


def test_a_column_twice_is_found(data: DataSet) -> None:
    data.rows["train"] = [[*row, "9"] for row in data.rows["train"]]
    data.rows["train"][0][-1] = "Overall_MOS"
    data.write()
    assert brief(data.check()) == [("duplicate-column", TRAIN, 1, "Overall_MOS")]


def test_a_duplicate_row_names_both_lines(data: DataSet) -> None:
    data.rows["train"].append(list(data.rows["train"][2]))
    data.rows["train"].append([*data.rows["train"][1][:-1], "1"])
    data.write()
    report = data.check()
    assert brief(report) == [
        ("duplicate-row", TRAIN, 5, "A_train1.mp4"),
        ("duplicate-row", TRAIN, 6, "A_train0.mp4"),
    ]
    assert "Line 3 is the same row" in report.findings[0].message
    assert "Line 2 is this video with other values" in report.findings[1].message


def test_a_prompt_in_two_splits_names_files_and_lines(data: DataSet) -> None:
    data.rows["train"][1][1] = "Straße am Meer"
    data.rows["train"][3][1] = "Straße am Meer"
    data.rows["test"][2][1] = "  STRASSE am  meer "
    data.write()
    (found,) = data.check().errors
    assert (found.check, found.file, found.row) == ("prompt-in-two-splits", TEST, 3)
    assert found.value == "  STRASSE am  meer "
    assert f"{TRAIN} (lines 2, 4) and {TEST} (line 3)" in found.message


def test_rows_without_videos_are_errors_and_videos_without_rows_are_warnings(data: DataSet) -> None:
    data.video("train", "A_train2.mp4").rename(data.video("train", "B_other.MP4"))
    data.video("train", "Thumbs.db").write_bytes(b"x")
    report = data.check()
    assert brief(report) == [
        ("row-without-video", TRAIN, 4, "A_train2.mp4"),
        ("stray-file", "data/train/videos/Thumbs.db", None, "Thumbs.db"),
        ("video-without-row", "data/train/videos/B_other.MP4", None, "B_other.MP4"),
    ]
    assert [found.check for found in report.errors] == ["row-without-video"]
    os.remove(data.video("train", "B_other.MP4"))
    data.rows["train"].pop()
    data.write()
    assert data.check().ok  # a warning stops nothing


def test_unreadable_videos_are_found_each_with_its_cause(data: DataSet) -> None:
    data.video("train", "A_train0.mp4").write_bytes(b"")
    data.video("train", "A_train1.mp4").write_bytes(b"no video at all " * 99)
    data.video("train", "A_train2.mp4").write_bytes(b"no video at all " * 99)
    whole = data.video("val", "A_val0.mp4").read_bytes()
    data.video("val", "A_val0.mp4").write_bytes(whole[: len(whole) // 3])
    data.video("val", "A_val1.mp4").unlink()
    data.video("val", "A_val1.mp4").symlink_to("nowhere.mp4")
    report = data.check()
    assert [(found.check, found.file, found.severity) for found in faults(report)] == [
        ("unreadable-video", f"data/{split}/videos/A_{split}{number}.mp4", "error")
        for split, number in [("train", 0), ("train", 1), ("train", 2), ("val", 0), ("val", 1)]
    ]
    empty, broken, again, cut, gone = (found.value for found in report.errors)
    assert empty == "is empty (0 bytes)"
    assert "moov atom not found" in broken
    assert again == broken  # PyAV drops a reason that it just gave
    assert cut
    assert gone == "no such file"
    assert f"line 3 of {TRAIN}" in report.findings[1].message


def test_an_unreadable_video_that_no_row_names_stops_nothing(data: DataSet) -> None:
    data.video("train", "half-copied.mp4").write_bytes(b"")
    report = data.check()
    assert report.ok
    assert [found.check for found in report.warnings] == ["unreadable-video", "video-without-row"]


@pytest.mark.parametrize(
    ("kind", "check", "value"),
    [
        ("one-frame", "too-few-frames", "1 frames"),
        ("small", "frame-size", "32x32"),
        ("large", "frame-size", "160x160"),
        ("long", "too-long", "2.0 seconds"),
    ],
)
def test_a_video_out_of_bounds_is_found(data: DataSet, kind: str, check: str, value: str) -> None:
    shutil.copy(data.clips[kind], data.video("val", "A_val2.mp4"))
    assert brief(data.check()) == [(check, "data/val/videos/A_val2.mp4", None, value)]


def drop_table(data: DataSet) -> None:
    data.table("val").unlink()


def empty_the_table(data: DataSet) -> None:
    data.table("val").write_bytes(b"\n")


def put_a_spreadsheet(data: DataSet) -> None:
    data.table("val").write_bytes(b"PK\x03\x04\0\0\xff\xfe")


def put_a_folder(data: DataSet) -> None:
    data.table("val").unlink()
    data.table("val").mkdir()


@pytest.mark.parametrize(
    ("harm", "check", "row"),
    [
        (drop_table, "missing-table", None),
        (empty_the_table, "unreadable-table", 1),
        (put_a_spreadsheet, "unreadable-table", 1),
        (put_a_folder, "unreadable-table", None),
    ],
)
def test_a_file_that_is_no_table_is_found_and_its_videos_are_still_opened(
    data: DataSet, harm: Callable[[DataSet], None], check: str, row: int | None
) -> None:
    harm(data)
    data.video("val", "A_val1.mp4").write_bytes(b"")
    assert brief(data.check()) == [
        (check, VAL, row, "val_labels.csv"),
        ("unreadable-video", "data/val/videos/A_val1.mp4", None, "is empty (0 bytes)"),
    ]


def test_a_table_without_rows_is_found(data: DataSet) -> None:
    data.rows["val"] = [HEADER]
    data.write()
    report = data.check()
    assert [found.check for found in report.errors] == ["empty-table"]
    assert len(report.warnings) == 3


def test_nothing_there_at_all_is_a_report_too(tmp_path: Path) -> None:
    report = validate(tmp_path / "nowhere", BOUNDS)
    assert [found.check for found in report.errors] == ["missing-table"] * 3 + ["missing-videos-folder"] * 3


def test_malformed_rows_are_found_and_the_rows_after_them_are_still_checked(data: DataSet) -> None:
    lines = data.table("train").read_text(encoding="utf-8").splitlines()
    lines[1] = 'A_train0.mp4,"a quote that never ends,1,2,3,4,5'
    lines[2] = "A_train1.mp4,no, quotes, here,1,2,3,4,5"
    lines[3] = lines[3].removesuffix("3") + "8"
    data.table("train").write_text("\n".join(lines), encoding="utf-8")
    assert brief(data.check()) == [
        ("malformed-row", TRAIN, 2, lines[1]),
        ("malformed-row", TRAIN, 3, lines[2]),
        ("mos-range", TRAIN, 4, "8"),
    ]


def test_lines_in_another_encoding_are_found_and_the_others_are_still_checked(data: DataSet) -> None:
    lines = data.table("train").read_bytes().splitlines()
    lines[2] = lines[2].replace(b"prompt", "Straße".encode("latin-1"))
    lines[3] = lines[3].removesuffix(b"3") + b"8"
    data.table("train").write_bytes(b"\n".join(lines))
    report = data.check()
    assert [(found.check, found.row) for found in faults(report)] == [("mos-range", 4), ("not-utf8", 3)]
    assert r"Stra\xdfe" in report.findings[1].value


def spoil(data: DataSet) -> None:
    """All the faults of the requirement at once."""
    train, val, test = (data.rows[split] for split in SPLITS)
    train[1][6] = "7"
    train[2][2] = "NaN"
    train.append(list(train[3]))
    val[1][1] = train[1][1]
    val[2][0] = "A_gone.mp4"
    data.rows["test"] = [row[:-1] for row in test]
    data.video("train", "unnamed.mp4").write_bytes(data.clips["good"].read_bytes())
    data.video("val", "A_val2.mp4").write_bytes(b"<script>")
    data.write()


ALL_FAULTS = [
    ("duplicate-row", TRAIN, 5, "A_train2.mp4"),
    ("missing-column", TEST, 1, "Overall_MOS"),
    ("mos-missing", TRAIN, 3, "NaN"),
    ("mos-range", TRAIN, 2, "7"),
    ("prompt-in-two-splits", VAL, 2, "a prompt, train0"),
    ("row-without-video", VAL, 3, "A_gone.mp4"),
    ("unreadable-video", "data/val/videos/A_val2.mp4", None),
    ("video-without-row", "data/train/videos/unnamed.mp4", None, "unnamed.mp4"),
    ("video-without-row", "data/val/videos/A_val1.mp4", None, "A_val1.mp4"),
]


def test_all_faults_together_are_in_one_report(data: DataSet) -> None:
    spoil(data)
    report = data.check()
    assert [found[: len(wanted)] for found, wanted in zip(brief(report), ALL_FAULTS, strict=True)] == ALL_FAULTS
    assert [found.severity for found in faults(report)] == ["error"] * 7 + ["warning"] * 2
    assert all(found.message.endswith(".") for found in report.findings)


def test_a_second_run_writes_the_same_bytes_wherever_the_data_lies(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(data)
    write_report(data.check(), tmp_path / "first")
    shutil.copytree(data.root, tmp_path / "moved" / "data")
    monkeypatch.chdir(tmp_path / "moved")
    write_report(validate(Path("data"), BOUNDS), tmp_path / "second")
    write_report(validate(Path("data/train/.."), BOUNDS), tmp_path / "second")  # over what is there
    for name in ("validation.json", "validation.html"):
        text = (tmp_path / "first" / name).read_bytes()
        assert text == (tmp_path / "second" / name).read_bytes()
        assert str(tmp_path).encode() not in text
    assert sorted(os.listdir(tmp_path / "second")) == ["validation.html", "validation.json"]
    written = json.loads((tmp_path / "first" / "validation.json").read_text(encoding="utf-8"))
    assert (written["ok"], written["errors"], written["warnings"]) == (False, 7, 2)
    assert written["counts"]["train"] == {"rows": 4, "videos": 4}
    assert written["infos"] == sum(found["severity"] == "info" for found in written["findings"])
    assert written["tables"]["train"]["expectations"]["evaluated"] > written["tables"]["train"]["expectations"]["held"]
    assert written["videos"]["expectations"] == {"evaluated": 7, "held": 6}
    assert written["videos"]["frames"] == {"min": 4, "median": 4.0, "max": 4}
    assert written["split"]["expectations"]["split-prompts"] == {"evaluated": 1, "held": 0}
    assert {"severity", "check", "file", "row", "value", "message"} == set(written["findings"][0])


def report_of(*values: str) -> ValidationReport:
    findings = [Finding("error", "prompt-length", TRAIN, 2, value, "Shorten it.") for value in values]
    return ValidationReport(tuple(findings), {"train": {"rows": 1, "videos": 2}})


def test_what_stands_in_the_data_is_escaped_on_the_page(tmp_path: Path) -> None:
    write_report(report_of("<script>alert('x')</script>", "caf\udce9"), tmp_path)
    page = (tmp_path / "validation.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    assert "http://" not in page
    assert "https://" not in page
    written = json.loads((tmp_path / "validation.json").read_text(encoding="utf-8"))
    assert {found["value"] for found in written["findings"]} == {"<script>alert('x')</script>", "caf\udce9"}


def test_the_text_for_people_is_cut_and_fit_for_a_terminal() -> None:
    text = report_of(*(f"prompt {number:03}" for number in range(203))).as_text()
    assert text.splitlines()[0] == "train: 1 row, 2 videos"
    assert "ERROR prompt-length (203)" in text
    assert text.count("prompt 0") == 20
    assert "and 183 more like it" in text
    assert text.endswith("203 errors, 0 warnings")
    assert shown("\x1b[31mred\n\udce9") == r"\x1b[31mred\n\udce9"
    assert shown("x" * 200, 5) == "xxxx…"


def test_errors_come_first_and_infos_last() -> None:
    info = Finding("info", "a-first", TRAIN, None, "", "")
    warning = Finding("warning", "a-first", TRAIN, None, "", "")
    error = Finding("error", "z-last", TRAIN, None, "", "")
    report = ValidationReport((info, warning, error), {})
    assert report.findings == (error, warning, info)
    assert report.summary == "1 error, 1 warning, 1 info"
    assert "INFO a-first (1)" in report.as_text()
    assert ValidationReport((info,), {}).ok


ODD_PROMPTS = [
    ("a bell \x07 rings", "prompt-control-character"),
    ("a \x9d comes through", "prompt-control-character"),
    ("a lost \ufffd letter", "prompt-replacement-character"),
    ("CafÃ© am Meer", "prompt-mojibake"),
    ("the catâ€™s eyes", "prompt-mojibake"),
    ("cafe\u0301 by the sea", "prompt-not-nfc"),
    (" a blank before", "prompt-blanks"),
    ("a blank after\u00a0", "prompt-blanks"),
    ("xy", "prompt-short"),
]


def test_odd_prompts_are_warnings_with_line_and_text(data: DataSet) -> None:
    for number, (prompt, _) in enumerate(ODD_PROMPTS):
        shutil.copy(data.clips["good"], data.video("train", f"B_{number}.mp4"))
        data.rows["train"].append([f"B_{number}.mp4", prompt, *"12345"])
    data.write()
    report = data.check(bounds=BOUNDS.model_copy(update={"short_prompt_characters": 3}))
    assert report.ok
    expected = [(check, TRAIN, 5 + number, prompt) for number, (prompt, check) in enumerate(ODD_PROMPTS)]
    assert brief(report) == sorted(expected)
    meant = {found.row: found.message for found in report.warnings}
    assert meant[8].endswith("'Café am Meer'.")
    assert meant[9].endswith("'the cat’s eyes'.")


@pytest.mark.parametrize(
    "good", ["", "Café am Meer", "«CAFÉ»", "Ã is a letter", "日本の猫", "naïve, 50 °C", "a\tb\u2028c"]
)
def test_good_text_is_no_mojibake_and_holds_no_control_character(good: str) -> None:
    assert text.meant(good) is None
    assert re.search(text.CONTROL, good) is None


@pytest.mark.parametrize("whole", ["Café", "“quoted” – dash", "猫が走る", "🐈 runs", "Ürümqi ÀÉ", "à la carte"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_read_in_another_encoding_is_read_back(whole: str, encoding: str) -> None:
    raw = whole.encode("utf-8")
    # Browsers and editors take the bytes that Windows-1252 leaves open for the control characters of Latin-1.
    wrong = "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in raw)
    assert text.meant(wrong) == whole


@pytest.mark.parametrize(
    ("cells", "step"),
    [
        (["1", "5", "3"], 1),
        (["1.5", "3"], 2),
        (["2.333", "2.667", "4"], 3),
        (["2.3333333333333335", "1"], 3),
        (["2.25", "2.5"], 4),
        (["2.25", "2.333"], None),  # a twelfth
        (["2.34"], None),
        (["3.6", "2.4"], 5),
    ],
)
def test_the_step_of_mos_is_found_as_they_are_written(cells: list[str], step: int | None) -> None:
    mos = np.array([[float(cell)] for cell in cells])
    assert steps.step(mos, [steps.decimals(cells)]) == step


def test_the_step_of_mos_and_rows_off_thirds_are_infos(data: DataSet) -> None:
    data.rows["val"][2][3] = "2.5"
    data.write()
    report = data.check()
    found = {one.file: (one.value, one.message) for one in report.infos if one.check == "mos-step"}
    assert found[TRAIN][0] == "1/3"
    assert found[VAL][0] == "1/6"
    assert "1 of 3 rows" in found[VAL][1]
    assert report.facts["tables"]["val"]["mos_step"] == "1/6"
    assert report.facts["tables"]["val"]["rows_not_in_thirds"] == 1
    assert report.ok


def test_small_splits_are_warnings_and_shares_are_an_info(data: DataSet) -> None:
    data.rows["val"][2][1] = data.rows["val"][1][1]
    data.write()
    report = data.check(bounds=BOUNDS.model_copy(update={"small_split_prompts": 3, "small_split_clips": 4}))
    assert brief(report) == [
        *(("few-clips", file, None, "3 clips") for file in (TEST, TRAIN, VAL)),
        ("few-prompts", VAL, None, "2 prompts"),
    ]
    (shares,) = (found for found in report.infos if found.check == "split-shares")
    assert (shares.file, shares.value) == ("data", "train 33 %, val 33 %, test 33 %")
    assert report.facts["split"]["sizes"]["val"] == {"clips": 3, "prompts": 2}


def labels(split: str, prompts: int, clips: int, mean: float) -> Table:
    """A table whose prompts lie about `mean`, and whose clips of one prompt are all alike."""
    spread = np.linspace(-0.9, 0.9, prompts)
    rows = {
        2 + prompt * clips + clip: {
            "video_name": f"{prompt}_{clip}.mp4",
            "Prompt": f"{split} {prompt}",
            **dict.fromkeys(MOS_COLUMNS, f"{mean + spread[prompt]:.3f}"),
        }
        for prompt in range(prompts)
        for clip in range(clips)
    }
    return Table(split, f"data/{split}.csv", ("video_name", "Prompt", *MOS_COLUMNS), rows)


def test_drift_is_tested_on_prompts_and_not_on_clips() -> None:
    (one,) = (
        d for d in differences([labels("train", 8, 50, 2.5), labels("val", 8, 50, 3.5)]) if d.dimension == "Overall"
    )
    assert one.prompts == (8, 8)
    assert one.statistic == pytest.approx(ks_2samp(np.linspace(1.6, 3.4, 8), np.linspace(2.6, 4.4, 8)).statistic)
    assert not one.significant  # 400 clips a split would be


def test_drift_of_labels_is_a_warning_with_its_numbers() -> None:
    tables = [labels("train", 60, 2, 2.5), labels("val", 60, 2, 2.5), labels("test", 60, 2, 3.5)]
    found, facts = check_split(Suites(), tables, BOUNDS)
    drift = [one for one in found if one.check == "label-drift"]
    assert [(one.severity, one.file) for one in drift] == [("warning", "data/test.csv")] * 10
    assert {one.value for one in drift if "Overall" in one.value} == {
        "Overall, train and test",
        "Overall, val and test",
    }
    assert "clips of one prompt are not independent" in drift[0].message
    assert len(facts["drift"]) == 15
    same = facts["drift"][0]
    assert (same["splits"], same["statistic"], same["p_corrected"]) == (["train", "val"], 0.0, 1.0)
    assert facts["expectations"]["split-drift"] == {"evaluated": 1, "held": 0}


def info_of(**changes: object) -> VideoInfo:
    whole: dict[str, object] = {
        "codec": "h264",
        "frames": 16,
        "width": 64,
        "height": 64,
        "fps": 16.0,
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "pixels": "yuv420p",
        "constant": "",
    }
    return VideoInfo(**(whole | changes))  # type: ignore[arg-type]


def test_what_videos_are_encoded_in_is_counted_and_constant_ones_are_warnings() -> None:
    infos = {
        "a.mp4": info_of(),
        "b.mp4": info_of(frames=8),
        "c.mp4": info_of(codec="mpeg4", constant="one colour"),
        "d.webm": info_of(codec="vp9", container="matroska,webm", width=128, constant="same picture"),
        "e.mkv": "is empty (0 bytes)",
    }
    clips = [videos.Clip(Path(name), f"data/{name}", None, "error") for name in infos]
    answers = {Path(name): info for name, info in infos.items()}
    report = ValidationReport(*(check_clips(Suites(), clips, answers, BOUNDS, "data")[0], {}))
    assert brief(report) == [
        ("unreadable-video", "data/e.mkv", None, "is empty (0 bytes)"),
        ("constant-video", "data/c.mp4", None, "one colour"),
        ("constant-video", "data/d.webm", None, "same picture"),
    ]
    assert [(found.value, found.message) for found in report.infos] == [
        ("mp4, h264, yuv420p", "2 videos; browsers play it."),
        ("mp4, mpeg4, yuv420p", "1 video; not every browser plays it; the pipeline does."),
        ("webm, vp9, yuv420p", "1 video; browsers play it."),
    ]
    _, facts = check_clips(Suites(), clips, answers, BOUNDS, "data")
    assert (facts["count"], facts["unreadable"]) == (5, 1)
    assert facts["containers"] == {"mp4": 3, "webm": 1}
    assert facts["codecs"] == {"h264": 2, "mpeg4": 1, "vp9": 1}
    assert facts["sizes"] == {"128x64": 1, "64x64": 3}
    assert facts["constant"] == {"one colour": 1, "same picture": 1}
    assert facts["frames"] == {"min": 8, "median": 16.0, "max": 16}
    assert facts["seconds"] == {"min": 0.5, "median": 1.0, "max": 1.0}


def test_tables_without_prompts_are_still_held_against_each_other(data: DataSet) -> None:
    data.rows = {split: [[row[0], *row[2:]] for row in rows] for split, rows in data.rows.items()}
    data.write()
    assert brief(data.check()) == [("missing-column", file, 1, "Prompt") for file in (TEST, TRAIN, VAL)]


def crowd(data: DataSet) -> None:
    """Many videos, two of them broken."""
    for number in range(30):
        name = f"B_{number:02}.mp4"
        shutil.copy(data.clips["good"], data.video("train", name))
        data.rows["train"].append([name, f"prompt {number}", *"12345"])
    data.video("train", "B_07.mp4").write_bytes(b"no video")
    data.video("train", "B_08.mp4").write_bytes(b"no video")
    data.write()


def test_many_videos_are_opened_by_processes_with_the_same_outcome(data: DataSet) -> None:
    crowd(data)
    seen: list[tuple[int, int]] = []
    report = data.check(workers=2, progress=lambda done, total: seen.append((done, total)))
    assert [found.file[-8:] for found in report.errors] == ["B_07.mp4", "B_08.mp4"]
    assert report == data.check(workers=1)
    assert seen == sorted(seen)
    assert seen[-1] == (39, 39)


def probe_or_crash(path: Path) -> tuple[Path, videos.Answer]:
    if path.name == "B_07.mp4":
        os._exit(1)
    return videos._probe(path)


def test_a_video_that_takes_its_process_down_is_named(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(data)
    monkeypatch.setattr(videos, "_probe", probe_or_crash)
    report = data.check(workers=2)
    assert report.errors[0].value == "crashes the process that reads it (exit code 1), twice"
    assert [found.file[-8:] for found in report.errors] == ["B_07.mp4", "B_08.mp4"]


def test_importing_and_the_workers_do_without_great_expectations() -> None:
    code = "import sys, qualivision.validation.videos; print('great_expectations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
