"""What is remembered of a file holds until the file changes, and not a moment longer."""

from __future__ import annotations

import os
import time

import pytest

from qualivision import seen as seen_module
from qualivision.seen import Seen


@pytest.fixture
def files(tmp_path):
    made = [tmp_path / name for name in "abc"]
    for file in made:
        file.write_text(file.name)
    return made


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once, so that no test waits a second."""
    monkeypatch.setattr(seen_module, "_TOO_FRESH_NS", 0)


def ask(seen, files):
    """What is found, and what had to be looked at for it."""
    looked = []

    def look(file):
        looked.append(file.name)
        return file.read_text()

    return {file.name: text for file, text in seen.find(files, look).items()}, sorted(looked)


def test_each_file_is_looked_at_once(tmp_path, files):
    seen = Seen(tmp_path / "state" / "seen.db")
    assert ask(seen, files) == ({"a": "a", "b": "b", "c": "c"}, ["a", "b", "c"])
    assert ask(Seen(seen.database), files) == ({"a": "a", "b": "b", "c": "c"}, [])


def test_a_file_that_changed_is_looked_at_again_also_when_size_and_time_are_the_same(tmp_path, files):
    seen = Seen(tmp_path / "seen.db")
    ask(seen, files)
    was = files[1].stat()
    time.sleep(0.02)  # a tick of the file system's clock
    files[1].write_text("B")
    os.utime(files[1], ns=(was.st_atime_ns, was.st_mtime_ns))
    assert ask(seen, files) == ({"a": "a", "b": "B", "c": "c"}, ["b"])


def test_what_changed_just_now_is_not_remembered(tmp_path, files, monkeypatch):
    monkeypatch.setattr(seen_module, "_TOO_FRESH_NS", 60_000_000_000)
    seen = Seen(tmp_path / "seen.db")
    ask(seen, files)
    assert ask(seen, files)[1] == ["a", "b", "c"]


def test_nothing_found_is_not_remembered(tmp_path, files):
    seen = Seen(tmp_path / "seen.db")
    assert seen.find(files, lambda file: None) == dict.fromkeys(files)
    assert ask(seen, files)[1] == ["a", "b", "c"]


def test_a_damaged_memory_is_thrown_away(tmp_path, files):
    (tmp_path / "seen.db").write_bytes(b"no database " * 100)
    seen = Seen(tmp_path / "seen.db")
    assert ask(seen, files)[1] == ["a", "b", "c"]
    assert ask(seen, files)[1] == []


def test_a_memory_that_can_not_be_written_is_named(tmp_path, files):
    (tmp_path / "seen.db").mkdir()
    with pytest.raises(OSError, match=r"seen\.db: can't be used"):
        ask(Seen(tmp_path / "seen.db"), files)
