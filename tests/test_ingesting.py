"""New rated videos into the data set: what is taken, waits or is refused, and that it is whole at every moment."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from filelock import FileLock
from ingest_parts import (
    COLUMNS,
    PARAMS,
    make_batch,
    make_data,
    names_in,
    row,
    run,
    table,
    tree,
    write_ratings,
)
from typer.testing import CliRunner

from qualivision import environment, ingesting
from qualivision.cli import app
from qualivision.ingesting import adding, inbox
from qualivision.ingesting.dataset import split_of_new
from qualivision.ingesting.results import report_file
from qualivision.labels import SPLITS, labels_path, ratings_path, read_labels, videos_dir
from qualivision.settings import DecodeSettings, ValidateSettings
from qualivision.validation import validate

SHARES = (0.8, 0.1, 0.1)
KNOWN = [f"known in {split}" for split in SPLITS]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout with a data set and an empty inbox, its state apart from that of other tests."""
    monkeypatch.setattr(environment, "STATE", tmp_path / "state")
    make_data(tmp_path / "data")
    (tmp_path / "inbox").mkdir()
    return tmp_path


@pytest.fixture
def unchecked(monkeypatch):
    """Videos are not opened, and tables not held against Great Expectations, which takes seconds."""
    monkeypatch.setattr(ingesting, "check_batch", lambda *_: [])


def of(done, batch):
    return next(one for one in done.outcomes if one.batch == batch)


def test_a_batch_is_added_its_known_prompts_where_they_are_and_the_rest_untouched(place, unchecked):
    before = tree(place / "data")
    rows = [row(f"C_{n}.mp4", prompt) for n, prompt in enumerate([*KNOWN, " Known  IN test "])]
    make_batch(place / "inbox" / "may", rows)
    sources = tree(place / "inbox")
    done = run(place)
    assert of(done, "may").state == "taken"
    assert names_in(place) == {
        "train": ["A_train.mp4", "B_train.mp4", "C_0.mp4"],
        "val": ["A_val.mp4", "B_val.mp4", "C_1.mp4"],
        "test": ["A_test.mp4", "B_test.mp4", "C_2.mp4", "C_3.mp4"],
    }
    after = tree(place / "data")
    for path, content in before.items():
        assert after[path].startswith(content)
    assert after["test/videos/C_3.mp4"] == b"content of C_3.mp4"
    assert tree(place / "inbox") == sources
    assert done.summary == "4 clips added (train 1, val 1, test 2)"
    assert not (place / "state/ingest/placing.json").exists()
    assert list((place / "state/ingest").rglob("*.mp4")) == []


def test_new_prompts_are_dealt_by_shares_and_never_torn_apart(place, unchecked):
    rows = [row(f"{letter}_{p}.mp4", f"new prompt {p}") for p in range(100) for letter in "CD"]
    make_batch(place / "inbox" / "one", rows[:99])
    make_batch(place / "inbox" / "two", rows[99:])
    run(place)
    prompts = {s: set(read_labels(labels_path(place / "data", s))["Prompt"]) - set(KNOWN) for s in SPLITS}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 100
    assert 70 <= len(prompts["train"]) <= 90 and min(map(len, prompts.values())) >= 3


def test_where_a_new_prompt_goes_follows_from_the_prompt_and_the_shares_alone():
    places = [split_of_new(f"prompt {n}", SHARES) for n in range(4000)]
    counts = [places.count(split) / 4000 for split in SPLITS]
    assert counts == pytest.approx(SHARES, abs=0.02)
    assert split_of_new("A  Cat", SHARES) == split_of_new(" a cat ", SHARES)
    assert {split_of_new(f"prompt {n}", (0.5, 0.0, 0.5)) for n in range(200)} == {"train", "test"}
    assert split_of_new("a cat", SHARES) == "train", "pinned: another split would leak what was trained on"


def test_another_run_has_nothing_to_do_and_opens_nothing(place, monkeypatch, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    run(place)
    after = tree(place / "data")
    monkeypatch.setattr(inbox.Inbox, "fetch", lambda *_: pytest.fail("a file was read"))
    done = run(place)
    assert (done.added, of(done, "may").new, tree(place / "data")) == (0, False, after)
    assert done.summary.startswith("nothing to do: no new batch in ")


@pytest.mark.parametrize("content", [None, "{", '{"": 3}', "[]"])
def test_without_receipts_it_comes_to_the_same(place, content, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val"), row("C_1.mp4", "a new one")])
    run(place)
    after = tree(place / "data")
    receipts = place / "state/ingest/receipts.json"
    receipts.unlink() if content is None else receipts.write_text(content)
    done = run(place)
    assert (done.added, of(done, "may").already, tree(place / "data")) == (0, 2, after)


def test_a_data_set_that_was_set_back_gets_the_batch_again(place, unchecked):
    before = labels_path(place / "data", "val").read_bytes()
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    run(place)
    labels_path(place / "data", "val").write_bytes(before)
    assert run(place).added == 1
    assert names_in(place)["val"] == ["A_val.mp4", "B_val.mp4", "C_0.mp4"]


def test_a_batch_that_has_grown_gives_what_is_new_in_it(place, unchecked):
    rows = [row("C_0.mp4", "known in val"), row("C_1.mp4", "known in test")]
    make_batch(place / "inbox" / "may", rows[:1])
    run(place)
    make_batch(place / "inbox" / "may", rows)
    assert (of(run(place), "may").rows, names_in(place)["test"][-1]) == ({"test": 1}, "C_1.mp4")


# what is not complete yet


def test_a_batch_waits_while_its_files_change(place, monkeypatch, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat")])
    done = run(place, settle_seconds=60.0)
    assert of(done, "may").state == "waiting" and "changed 0 s ago" in of(done, "may").why
    now = time.time()
    monkeypatch.setattr(inbox, "now", lambda: now + 61)
    assert run(place, settle_seconds=60.0).added == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda batch: (batch / "videos/C_1.mp4").unlink(), "names videos that are not there: C_1.mp4 (line 3)"),
        (lambda batch: (batch / "labels.csv").unlink(), "it has no label table (.csv or .tsv)"),
        (lambda batch: (batch / "labels.csv").rename(batch / ".labels.csv"), "it has no label table"),
    ],
)  # fmt: skip
def test_a_batch_that_lacks_something_waits_and_is_refused_when_nothing_comes(
    place, monkeypatch, unchecked, spoil, why
):
    spoil(make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat"), row("C_1.mp4", "a dog")]))
    before = tree(place / "data")
    waiting = of(run(place), "may")
    assert waiting.state == "waiting" and why in waiting.why
    now = time.time()
    monkeypatch.setattr(inbox, "now", lambda: now + 24 * 3600 + 61)
    refused = of(run(place), "may")
    assert refused.state == "refused" and refused.new and "nothing came for 24 h" in refused.why
    assert tree(place / "data") == before


def test_a_batch_that_changes_while_it_is_read_waits(place, monkeypatch, unchecked):
    batch = make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat")])
    fetch = inbox.Inbox.fetch

    def meanwhile(self, *arguments):
        fetch(self, *arguments)
        (batch / "videos/C_0.mp4").write_bytes(b"longer than before, by far")

    monkeypatch.setattr(inbox.Inbox, "fetch", meanwhile)
    assert of(run(place), "may").why == "it changed while it was read"
    assert names_in(place)["train"] == ["A_train.mp4", "B_train.mp4"]


def test_files_beside_the_batches_are_left_alone_and_named(place, unchecked):
    (place / "inbox" / "notes.txt").write_text("x")
    (place / "inbox" / ".hidden").mkdir()
    (place / "inbox" / ".hidden" / "x.csv").write_text("x")
    done = run(place)
    assert (done.outcomes, done.strays) == ((), ("notes.txt",))
    assert "not in a batch, so left alone: notes.txt" in done.as_text()


def test_an_inbox_that_is_not_there_is_empty(place):
    (place / "inbox").rmdir()
    assert run(place).summary == f"nothing to do: there is no batch in {place / 'inbox'}"


# what is refused


@pytest.mark.parametrize(
    ("new", "check", "says"),
    [
        (row("A_val.mp4", "known in val", Overall_MOS=4), "known-video-other-row", "line 2 of data/val/labels/"),
        (row("A_val.mp4", "another prompt"), "known-video-other-row", "with Prompt 'known in val'"),
        (row("A_val.mp4", "known in val"), "known-video-other-content", "has another video of this name"),
        (row("left.mp4", "known in val"), "known-video-other-content", "lies in train/videos, and no row"),
        (row("C.mp4", "torn"), "prompt-in-two-splits", "The data set has this prompt in train and test"),
    ],
)  # fmt: skip
def test_what_clashes_with_the_data_set_refuses_the_batch_and_names_the_row(place, unchecked, new, check, says):
    for split in ("train", "test"):
        with labels_path(place / "data", split).open("a") as file:
            file.write(f"torn_{split}.mp4,torn,3,3,3,3,3\n")
    (videos_dir(place / "data", "train") / "left.mp4").write_bytes(b"other")
    before = tree(place / "data")
    make_batch(place / "inbox" / "may", [row("D.mp4", "fine"), new])
    make_batch(place / "inbox" / "june", [row("E.mp4", "known in val")])
    done = run(place)
    refused = of(done, "may")
    (finding,) = refused.findings
    assert (refused.state, finding.check, finding.place) == ("refused", check, "may/labels.csv:3")
    assert says in finding.message
    assert json.loads(refused.report.read_text())["findings"][0]["row"] == 3
    assert of(done, "june").state == "taken", "the other batches are done all the same"
    after = tree(place / "data")
    assert {path for path in after if after[path] != before.get(path)} == {
        "val/labels/val_labels.csv",
        "val/videos/E.mp4",
    }


def test_a_refused_batch_is_not_looked_at_again_until_something_changes(place, monkeypatch, unchecked):
    batch = make_batch(place / "inbox" / "may", [row("A_val.mp4", "known in val", Overall_MOS=4)])
    assert run(place).newly_refused
    with monkeypatch.context() as patch:
        patch.setattr(inbox.Inbox, "fetch", lambda *_: pytest.fail("a file was read"))
        again = run(place)
    assert (again.newly_refused, of(again, "may").state, len(of(again, "may").findings)) == ((), "refused", 1)
    assert "refused before and not changed since: may" in again.summary
    make_batch(place / "inbox" / "other", [row("E.mp4", "known in val")])
    assert run(place).newly_refused == (), "the data set is another, so it is judged again; that is no news"
    (batch / "videos/A_val.mp4").unlink()
    make_batch(batch, [row("C_val.mp4", "known in val", Overall_MOS=4)])
    assert of(run(place), "may").state == "taken"


def test_a_refused_batch_that_was_touched_is_news_again(place, unchecked):
    make_batch(place / "inbox" / "may", [row("A_val.mp4", "known in val", Overall_MOS=4)])
    assert run(place).newly_refused
    make_batch(place / "inbox" / "may", [row("A_val.mp4", "known in val", Overall_MOS=5)])
    assert run(place).newly_refused


@pytest.mark.parametrize(
    ("content", "check"),
    [
        ("", "unreadable-table"),
        (b"video_name,Prompt\n\xff\xfe.mp4,x\n", "not-utf8"),
        ("video_name,Prompt\nC_0.mp4,a, cat\n", "malformed-row"),
        ("video_name,Prompt,Overall_MOS\nC_0.mp4,a cat,3\n", "columns"),
        (table([{**row("C_0.mp4", "a cat"), "overall": 3, "caption": "x"}]).replace("Prompt", "text"), "columns"),
        ("video_name,Prompt,Prompt\nC_0.mp4,a cat,a cat\n", "duplicate-column"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_refuses_the_batch(place, unchecked, content, check):
    batch = make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat")])
    (batch / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused = of(run(place), "may")
    assert refused.state == "refused"
    assert check in {found.check for found in refused.findings}
    assert {found.file for found in refused.findings} == {"may/labels.csv"}


def test_two_label_tables_and_two_videos_of_one_name_are_named(place, unchecked):
    batch = make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat")])
    (batch / "more.csv").write_text(table([row("C_0.mp4", "a cat")]))
    other = make_batch(place / "inbox" / "june", [row("C_0.mp4", "a cat")])
    (other / "C_0.mp4").write_bytes(b"x")
    done = run(place)
    assert [found.check for found in of(done, "may").findings] == ["two-tables"]
    (finding,) = of(done, "june").findings
    assert finding.check == "two-videos" and "C_0.mp4 and videos/C_0.mp4 have this name" in finding.message


def test_rated_clips_do_not_go_to_a_test_table_without_mos(place, unchecked):
    labels_path(place / "data", "test").write_text(
        "video_name,Prompt\nA_test.mp4,known in test\nB_test.mp4,known in test\n"
    )
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in test")])
    make_batch(place / "inbox" / "june", [row(f"D_{n}.mp4", f"new {n}") for n in range(40)])
    done = run(place, shares=(0.9, 0.1, 0.0))
    assert [found.check for found in of(done, "may").findings] == ["split-without-mos"]
    assert of(done, "june").state == "taken"


def test_a_data_set_that_is_broken_is_named_and_nothing_is_taken(place, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "a cat")])
    labels_path(place / "data", "val").write_text("video_name,Prompt\na,b,c\n")
    with pytest.raises(ingesting.IngestError, match=r"data/val/labels/val_labels.csv:2: It has 3 cells"):
        run(place)
    labels_path(place / "data", "val").unlink()
    with pytest.raises(
        ingesting.IngestError, match=r"data/val/labels/val_labels.csv: no such file; clips are added to a"
    ):
        run(place)


# tables


def test_columns_by_other_names_more_columns_and_paths_are_understood(place, unchecked):
    head = ["clip", "caption", "traditional", "Alignment MOS", "aesthetic_score", "temporal", "q5", "raters"]
    text = "\t".join(head) + "\nnight\\C_0\tknown in val\t1\t2\t3\t4\t5\t7\n"
    batch = place / "inbox" / "may"
    (batch / "night").mkdir(parents=True)
    (batch / "night" / "C_0.mp4").write_bytes(b"x")
    (batch / "table.tsv").write_text(text)
    done = run(place, columns={"Overall_MOS": "q5", "video_name": "clip"})
    assert of(done, "may").state == "taken", of(done, "may")
    val = read_labels(labels_path(place / "data", "val"))
    assert list(val.columns[-2:]) == ["Overall_MOS", "raters"]
    assert val["video_name"].tolist() == ["A_val.mp4", "B_val.mp4", "C_0.mp4"]
    assert val["Overall_MOS"].tolist() == [3, 3, 5]
    assert val["raters"].tolist() == ["", "", "7"]


def test_what_stands_in_a_table_stays_as_it_is_written(place, unchecked):
    path = labels_path(place / "data", "val")
    text = f'{",".join(COLUMNS)},note\nA_val.mp4,"known, in val",3.30,3,3,3,3.000,"a ""b"""'
    path.write_text(text)  # no end of line after the last row
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known, in val", Overall_MOS="4.50")])
    run(place)
    assert path.read_text() == f'{text}\nC_0.mp4,"known, in val",3,3,3,3,4.50,\n'
    make_batch(place / "inbox" / "june", [row("C_1.mp4", "known, in val", seed=1)])
    run(place)
    assert path.read_text().splitlines()[1] == 'A_val.mp4,"known, in val",3.30,3,3,3,3.000,"a ""b""",'
    assert path.read_text().splitlines()[3] == 'C_1.mp4,"known, in val",3,3,3,3,3,,1'


def ratings(name, raters=2, **cells):
    return {"video_name": name, **{f"Overall_{n}": 3 for n in range(1, raters + 1)}, **cells}


def test_single_ratings_are_added_to_those_that_are_there(place, unchecked):
    write_ratings(place, "val", [ratings("A_val.mp4"), ratings("B_val.mp4")])
    rows = [row("C_0.mp4", "known in val"), row("C_1.mp4", "known in train")]
    batch = make_batch(place / "inbox" / "may", rows)
    # one rater more than the data set has, and ratings where it has none
    (batch / "singles.csv").write_text(table([ratings("C_1.mp4", 3), ratings("C_0.mp4", 3, place="home")]))
    done = of(run(place), "may")
    assert [(found.check, found.value) for found in done.findings] == [("ratings-left-out", "Overall_3")]
    assert ratings_path(place / "data", "val").read_text().splitlines()[-1] == "C_0.mp4,3,3,home"
    assert ratings_path(place / "data", "train").read_text() == table([ratings("C_1.mp4", 3, place="")])


def test_clips_without_single_ratings_are_added_with_a_warning_and_ratings_may_come_later(place, unchecked):
    write_ratings(place, "val", [ratings("A_val.mp4"), ratings("B_val.mp4")])
    batch = make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    done = of(run(place), "may")
    assert [(found.check, found.value) for found in done.findings] == [("no-single-ratings", "val 1 clip")]
    (batch / "singles.csv").write_text(table([ratings("C_0.mp4")]))
    assert "single ratings of 1 clip" in of(run(place), "may").why
    assert ratings_path(place / "data", "val").read_text().splitlines()[1:] == [
        "A_val.mp4,3,3",
        "B_val.mp4,3,3",
        "C_0.mp4,3,3",
    ]


@pytest.mark.parametrize(
    ("single", "check"),
    [
        (ratings("C_0.mp4", Overall_1="good"), "rating"),
        (ratings("C_0.mp4", Overall_1=6), "rating"),
        (ratings("C_0.mp4", Overall_1="nan"), "rating"),
        (ratings("C_9.mp4"), "ratings-of-no-row"),
        (ratings("C_0.mp4", asks="{", shows="{}"), "asks-and-shows"),
        (ratings("C_0.mp4", asks='{"smell": "x"}', shows='{"smell": "x"}'), "asks-and-shows"),
        (ratings("C_0.mp4", degradations="{"), "degradations"),
        (ratings("C_0.mp4", degradations='{"smell": {"loss": 1}}'), "degradations"),
    ],
)
def test_bad_single_ratings_refuse_the_batch(place, unchecked, single, check):
    batch = make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    (batch / "singles.csv").write_text(table([single]))
    (finding,) = of(run(place), "may").findings
    assert (finding.check, finding.place) == (check, "may/singles.csv:2")


# whole at every moment


def everything(place):
    """The data set, as it is read: every row of it has its video."""
    for split, names in names_in(place).items():
        assert len(set(names)) == len(names)
        assert {path.name for path in videos_dir(place / "data", split).iterdir()} >= set(names)
    return tree(place / "data")


def forked(place, moment):
    """Run in a child that is killed at its `moment`-th change of the disk; returns whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            changes = event in ("os.link", "os.rename", "os.remove") or (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if changes:
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        code = 1
        try:
            run(place)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("links", [True, False], ids=["with links", "with copies"])
def test_killed_at_any_moment_the_data_set_is_whole_and_a_second_run_ends_the_same(
    tmp_path, monkeypatch, unchecked, links
):
    if not links:
        monkeypatch.setattr(adding.os, "link", no_link)
    (tmp_path / "whole").mkdir()
    wanted, moment, killed = None, 1, True
    while killed:
        place = tmp_path / ("whole" if wanted is None else f"killed{moment}")
        monkeypatch.setattr(environment, "STATE", place / "state")
        make_data(place / "data")
        write_ratings(place, "val", [ratings("A_val.mp4")])
        batch = make_batch(
            place / "inbox" / "may", [row(f"C_{n}.mp4", prompt, raters=3) for n, prompt in enumerate(KNOWN)]
        )
        (batch / "singles.csv").write_text(table([ratings("C_1.mp4"), ratings("C_2.mp4")]))
        make_batch(place / "inbox" / "june", [row("D_0.mp4", "new"), row("D_1.mp4", "known in test")])
        if wanted is None:
            run(place)
            wanted = everything(place)
            continue
        killed = forked(place, moment)
        everything(place)
        run(place)
        assert everything(place) == wanted, f"killed at change {moment}"
        assert not list((place / "state/ingest").glob("placing*"))
        moment += 1 if links else 5
    assert moment > 40


def no_link(source, target):
    raise OSError(18, "Invalid cross-device link")


def test_videos_of_a_killed_run_are_taken_back_when_their_batch_is_gone(place, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    before = tree(place / "data")
    moment = 1
    while forked(place, moment) and not (videos_dir(place / "data", "val") / "C_0.mp4").exists():
        moment += 1
    assert tree(place / "data") != before
    (place / "inbox" / "may").rename(place / "elsewhere")
    make_batch(place / "inbox" / "june", [row("D_0.mp4", "known in val")])
    run(place)
    assert "val/videos/C_0.mp4" not in tree(place / "data")
    assert names_in(place)["val"] == ["A_val.mp4", "B_val.mp4", "D_0.mp4"]


def test_a_full_disk_is_named_and_the_data_set_is_as_it_was(place, monkeypatch, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val"), row("C_1.mp4", "known in train")])
    before = tree(place / "data")
    write = Path.write_bytes

    def full(path, content):
        if path.name.endswith("val_labels.csv"):
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ingesting.IngestError, match=r"No space left on device.*make room and run this again"):
            run(place)
    assert tree(place / "data") == before
    assert run(place).added == 2


def test_a_batch_that_is_too_large_for_the_disk_is_not_begun(place, monkeypatch, unchecked):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(ingesting.IngestError, match=r"GB of videos to copy, 0\.00 GB free"):
        run(place)


def test_files_that_dvc_has_linked_to_its_cache_are_not_written_through(place, unchecked):
    path = labels_path(place / "data", "val")
    cached = place / "cached"
    os.link(path, cached)
    path.chmod(0o444)
    before = cached.read_bytes()
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    assert run(place).added == 1
    assert cached.read_bytes() == before != path.read_bytes()


def test_two_runs_do_not_meet(place):
    (place / "state/ingest").mkdir(parents=True)
    with (
        FileLock(place / "state/ingest/.lock"),
        pytest.raises(ingesting.BusyError, match="another run takes in the inbox"),
    ):
        run(place)


# buckets


def test_a_bucket_is_taken_in_like_a_folder(place, unchecked):
    make_batch(place / "local" / "may", [row("C_0.mp4", "known in val"), row("C_1.mp4", "known in train")])
    bucket = fsspec.filesystem("memory")
    bucket.put(str(place / "local"), "/ratings/inbox", recursive=True)
    try:
        waiting = run(place, "memory://ratings/inbox", settle_seconds=60.0)
        assert of(waiting, "may").state == "waiting"
        assert run(place, "memory://ratings/inbox").added == 2
        assert run(place, "memory://ratings/inbox").added == 0
        assert (videos_dir(place / "data", "val") / "C_0.mp4").read_bytes() == b"content of C_0.mp4"
    finally:
        bucket.store.clear()


def test_what_an_inbox_needs_is_named(place):
    with pytest.raises(ingesting.IngestError, match=r"gopher://x: Protocol not known: gopher; give a folder, or a URL"):
        run(place, "gopher://x")


def test_a_bucket_whose_package_is_missing_says_which_extra_it_is(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        ingesting.IngestError, match=r"inbox s3://ratings/inbox: needs .* pip install 'qualivision\[s3\]'"
    ):
        run(place, "s3://ratings/inbox")


def test_a_bucket_that_does_not_answer_is_one_line(place, monkeypatch):
    class Away(Exception):
        pass

    def away(*_, **__):
        raise Away("no route\nto host")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.find", away)
    with pytest.raises(ingesting.IngestError, match=r"can't be read \(Away: no route to host\)$"):
        run(place)


# with real checks


def test_videos_and_labels_are_held_against_the_rules_of_a_data_set(place, make_clip):
    make_data(place / "real", lambda path: make_clip(path, width=64, height=64, shade=len(path.name)))
    (place / "data").rename(place / "toy")
    (place / "real").rename(place / "data")
    good = [row("C_0.mp4", "known in val", Overall_MOS=4.333), row("C_1.mp4", "something new")]
    for shade, name in enumerate(["C_0.mp4", "C_1.mp4"]):
        batch = make_batch(place / "inbox" / "good", good) if shade == 0 else place / "inbox" / "good"
        make_clip(batch / "videos" / name, width=64, height=64, shade=shade)
    bad = make_batch(
        place / "inbox" / "bad", [row("D_0.mp4", ""), row("D_1.mp4", "a", Overall_MOS=7), row("D_2.mp4", "a")]
    )
    make_clip(bad / "videos" / "D_0.mp4", width=64, height=64)
    make_clip(bad / "videos" / "D_1.mp4", width=32, height=32)  # D_2 is no video at all
    done = run(place)
    assert of(done, "good").state == "taken"
    assert sorted((found.place, found.check) for found in of(done, "bad").findings if found.severity == "error") == [
        ("bad/labels.csv:2", "missing-prompt"),
        ("bad/labels.csv:3", "mos-range"),
        ("bad/videos/D_1.mp4", "frame-size"),
        ("bad/videos/D_2.mp4", "unreadable-video"),
    ]
    assert "It is named in line 4 of bad/labels.csv." in next(
        f.message for f in of(done, "bad").findings if "D_2" in f.file
    )
    bounds = ValidateSettings(min_frames=2, min_side_px=16, max_side_px=100, max_seconds=9, max_prompt_characters=99)
    assert validate(place / "data", bounds, DecodeSettings()).errors == ()


# the command


def test_the_command_says_what_came_of_it_and_what_is_next(place, monkeypatch, unchecked):
    monkeypatch.chdir(place)
    text = PARAMS.read_text().replace("settle_seconds: 60", "settle_seconds: 0")
    (place / "params.yaml").write_text(text)
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    done = CliRunner().invoke(app, ["ingest"])
    assert done.exit_code == 0, done.output
    assert "may: taken: 1 clip added (val 1)" in done.output
    assert "ingest: data has changed; next: `dvc add data`, then `dvc repro`" in done.output
    make_batch(place / "inbox" / "june", [row("A_val.mp4", "known in val", Overall_MOS=4)])
    done = CliRunner().invoke(app, ["ingest"])
    assert done.exit_code == 1
    assert "june/labels.csv:2  A_val.mp4: Overall_MOS '4'" in done.output
    again = CliRunner().invoke(app, ["ingest"])
    assert again.exit_code == 0
    assert "june: refused: " in again.output


@pytest.mark.parametrize("name", ["a b", "../x", "ümlaut", "x" * 300])
def test_the_report_of_any_batch_has_a_plain_name_of_its_own(name):
    path = report_file(Path("reports"), name)
    assert path.parent == Path("reports") and len(path.name) < 130 and path != report_file(Path("reports"), f"{name}.")
