"""The cache: what is written comes back or is refused, and an interrupted run loses nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from qualivision import cache as cache_module
from qualivision.cache import Cache, CacheError, file_hash, in_processes, make_key, write_atomically
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


def work(number: int, folder: Path) -> tuple[int, int]:
    """A job; module-level, so that worker processes find it. The numbers above 90 fail."""
    (folder / str(number)).touch()
    if number > 90:
        raise VideoError(folder / f"{number}.mp4", "is cut off")
    return number, os.getpid()


def slow_work(number: int, folder: Path) -> None:
    time.sleep(0.1)
    work(number, folder)


def test_few_jobs_run_in_this_process_in_order(tmp_path):
    results = list(in_processes(work, [(number, tmp_path) for number in (1, 2, 3)], workers=2))
    assert results == [(number, os.getpid()) for number in (1, 2, 3)]


@pytest.mark.parametrize("others", [2, 12], ids=["in this process", "in worker processes"])
def test_a_failure_comes_as_it_is_after_all_others_ran(tmp_path, others):
    jobs = [99, *range(others)]
    done = []
    with pytest.raises(VideoError, match=r"99\.mp4: is cut off") as refused:
        for number, process in in_processes(work, [(number, tmp_path) for number in jobs], workers=2):
            done.append(number)
            assert (process == os.getpid()) == (others == 2)
    assert refused.value.path == tmp_path / "99.mp4"
    assert sorted(done) == list(range(others))


@pytest.mark.parametrize("others", [2, 12], ids=["in this process", "in worker processes"])
def test_several_failures_come_together_after_all_others_ran(tmp_path, others):
    jobs = [(number, tmp_path) for number in (98, *range(others), 99)]
    with pytest.raises(ExceptionGroup, match=f"2 of {others + 2} failed") as refused:
        list(in_processes(work, jobs, workers=2))
    assert {str(error) for error in refused.value.exceptions} == {
        f"{tmp_path / name}: is cut off" for name in ("98.mp4", "99.mp4")
    }
    assert len(os.listdir(tmp_path)) == others + 2


def test_jobs_not_begun_are_dropped_when_nobody_waits_for_them(tmp_path):
    results = iter(in_processes(slow_work, [(number, tmp_path) for number in range(40)], workers=2))
    next(results)
    results.close()
    assert len(os.listdir(tmp_path)) < 20


def test_the_index_is_json_sorted_by_clip(cache):
    fill(cache, {"b": "2", "a": "1"})
    assert list(json.loads((cache.folder / "index.json").read_text())) == ["a", "b"]
