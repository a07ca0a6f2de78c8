"""The cache: what is written comes back or is refused, and an interrupted run loses nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qualivision import cache as cache_module
from qualivision.cache import Cache, CacheError, file_hash, make_key, write_atomically
from qualivision.video import VideoError

ARRAYS = {"frames": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "stem": np.ones((1, 2), np.float32)}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", stage="qualivision frames lite")


def fill(cache: Cache, wanted: dict[str, str], *, fail_at: str = "") -> tuple[str, list[str]]:
    """Fill with an entry a clip; returns the summary and the clips that were made, in order."""
    made = []

    def missing(clips):
        for clip in clips:
            if clip == fail_at:
                raise VideoError(Path(clip), "is cut off")
            cache.write(wanted[clip], ARRAYS)
            made.append(clip)
            yield clip

    return str(cache.fill(wanted, missing, advance=lambda done, total: None)), made


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


@pytest.mark.parametrize(
    "arrays",
    [
        ARRAYS,
        {"half": np.linspace(0, 1, 7, dtype=np.float16), "empty": np.zeros((0, 3), np.int64)},
        {"one": np.array(2.5)},
        {"strided": np.arange(24).reshape(4, 6)[:, ::2]},
        {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
    ],
    ids=lambda arrays: "-".join(arrays),
)
def test_what_is_written_comes_back(cache, arrays):
    cache.write("key", arrays)
    read = cache.read("key")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_every_altered_byte_is_noticed(cache):
    cache.write("key", ARRAYS)
    path = cache.path("key")
    whole = path.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0xFF
        path.write_bytes(altered)
        with pytest.raises(CacheError, match="run `qualivision frames lite` again") as refused:
            cache.read("key")
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_cut_file_is_refused_by_name_and_stage(cache, kept):
    cache.write("key", ARRAYS)
    path = cache.path("key")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CacheError, match=r"is cut or damaged .*; run `qualivision frames lite` again"):
        cache.read("key")
    assert not cache.is_whole("key")


def test_a_missing_entry_and_a_cache_never_filled_name_the_stage(cache):
    with pytest.raises(CacheError, match=r"key\.safetensors: no such file; run `qualivision frames lite`"):
        cache.read("key")
    with pytest.raises(CacheError, match=r"index\.json: no such file; run `qualivision frames lite` first"):
        cache.index()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_index_is_refused(cache, content):
    cache.folder.mkdir()
    (cache.folder / "index.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"index\.json: is damaged; run `qualivision frames lite` again"):
        cache.index()


def test_filling_makes_only_what_is_missing(cache):
    assert fill(cache, {"a": "1", "b": "2"}) == ("2 made, 0 were there, 0 removed", ["a", "b"])
    assert fill(cache, {"a": "1", "b": "2", "c": "3"}) == ("1 made, 2 were there, 0 removed", ["c"])
    assert fill(cache, {"a": "1", "b": "2", "c": "3"}) == ("0 made, 3 were there, 0 removed", [])
    assert cache.index() == {"a": "1", "b": "2", "c": "3"}


def test_a_damaged_entry_is_made_again(cache):
    fill(cache, {"a": "1", "b": "2"})
    cache.path("2").write_bytes(b"broken")
    assert fill(cache, {"a": "1", "b": "2"}) == ("1 made, 1 were there, 0 removed", ["b"])
    np.testing.assert_array_equal(cache.read("2")["frames"], ARRAYS["frames"])


def test_a_run_that_failed_in_the_middle_goes_on_where_it_was(cache):
    wanted = {name: f"key-{name}" for name in "abcd"}
    with pytest.raises(VideoError, match="c: is cut off"):
        fill(cache, wanted, fail_at="c")
    assert files(cache) == ["key-a.safetensors", "key-b.safetensors"]  # no index: it isn't whole
    assert fill(cache, wanted) == ("2 made, 2 were there, 0 removed", ["c", "d"])
    assert cache.index() == wanted


def test_clips_of_equal_content_are_made_once_and_both_found(cache):
    assert fill(cache, {"b": "1", "a": "1", "c": "2"})[1] == ["a", "c"]
    assert cache.index() == {"a": "1", "b": "1", "c": "2"}


def test_what_nobody_wants_is_removed_with_left_over_temporary_files(cache):
    fill(cache, {"a": "1", "b": "2"})
    (cache.folder / ".1.safetensors.x7f").write_bytes(b"half")
    assert fill(cache, {"a": "1"})[0] == "0 made, 1 were there, 2 removed"
    assert files(cache) == ["1.safetensors", "index.json"]


def test_equal_wishes_give_an_equal_folder_whatever_lay_there(tmp_path):
    one, other = (Cache(tmp_path / name, stage="s") for name in ("one", "other"))
    fill(one, {"a": "1", "b": "2"})
    fill(other, {"c": "3", "b": "2"})
    fill(other, {"b": "2", "a": "1"})
    assert {p.name: p.read_bytes() for p in one.folder.iterdir()} == {
        p.name: p.read_bytes() for p in other.folder.iterdir()
    }


def test_progress_starts_at_zero_and_ends_with_all(cache):
    told = []
    cache.fill({"a": "1", "b": "2"}, lambda clips: iter(clips), advance=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_file_is_replaced_whole_and_can_be_read_by_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("step", ["chmod", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, step, full)
    with pytest.raises(OSError, match=r"can't write .*/file\.json: No space left on device") as refused:
        write_atomically(path, b"new")
    assert refused.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["file.json"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_key_follows_from_every_part_and_a_hash_from_the_content(tmp_path):
    keys = {make_key(*parts) for parts in (("a", 1), ("a", 2), ("b", 1), ("a",), (1, "a"))}
    assert len(keys) == 5
    assert make_key("a", 1) == make_key("a", 1)
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_hash(tmp_path / name) for name in "abc")
    assert a == b != c


def test_the_index_is_json_sorted_by_clip(cache):
    fill(cache, {"b": "2", "a": "1"})
    assert list(json.loads((cache.folder / "index.json").read_text())) == ["a", "b"]


def test_two_runs_at_once_take_turns(tmp_path):
    """Each of two processes wants all entries: every one is made once, and the folder is as after a single run."""
    script = """
import sys, time
from pathlib import Path
import numpy as np
from qualivision.cache import Cache
folder = Path(sys.argv[1])
cache = Cache(folder / "cache", stage="s")
def missing(clips):
    for clip in clips:
        time.sleep(0.02)
        cache.write(clip, {"a": np.full(1000, int(clip), np.int64)})
        with (folder / "made.txt").open("a") as file:
            file.write(clip + chr(10))
        yield clip
print(cache.fill({str(n): str(n) for n in range(40)}, missing, advance=lambda done, total: None))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(run.communicate(timeout=60)[0].strip() for run in runs)
    assert said == ["0 made, 40 were there, 0 removed", "40 made, 0 were there, 0 removed"]
    assert len((tmp_path / "made.txt").read_text().split()) == 40
    assert len(files(Cache(tmp_path / "cache", stage="s"))) == 41


def test_what_is_read_can_be_written_to_without_touching_the_entry(cache):
    cache.write("key", ARRAYS)
    read = cache.read("key")
    read["frames"][:] = 0
    np.testing.assert_array_equal(cache.read("key")["frames"], ARRAYS["frames"])
