"""The frame and stem caches: what makes an entry anew, and what is left alone."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from qualivision import frames, video
from qualivision.cache import Cache, CacheError
from qualivision.frames import clip_name, fill_frames, fill_stems, frame_cache, labelled_videos, stem_cache
from qualivision.labels import SPLITS, LabelError, labels_path, videos_dir
from qualivision.settings import DecodeSettings, FrameSpec
from qualivision.video import VideoError

SPEC = FrameSpec(count=4, height=32, width=32)
LIMITS = DecodeSettings()


def silent(done: int, total: int) -> None:
    pass


class DataSet:
    """One labelled video a split, to add to."""

    def __init__(self, root, make_clip):
        self.root = root
        self._make_clip = make_clip
        self.names = {split: [] for split in SPLITS}
        for shade, split in enumerate(SPLITS):
            self.add(split, f"A_{split}.mp4", shade)

    def add(self, split, name, shade=None):
        """A row, and its video unless `shade` is None."""
        videos_dir(self.root, split).mkdir(parents=True, exist_ok=True)
        labels_path(self.root, split).parent.mkdir(parents=True, exist_ok=True)
        self.names[split].append(name)
        with labels_path(self.root, split).open("w", newline="") as file:
            csv.writer(file).writerows([["video_name", "Prompt"], *([name, "p"] for name in self.names[split])])
        if shade is not None:
            self._make_clip(self.video(split, name), frames=4, shade=shade)

    def video(self, split, name):
        return videos_dir(self.root, split) / name


@pytest.fixture
def data(tmp_path, make_clip):
    return DataSet(tmp_path / "data", make_clip)


@pytest.fixture
def cache(tmp_path):
    return frame_cache(tmp_path / "frames", "lite")


@pytest.fixture(autouse=True)
def decoded(monkeypatch):
    """The names of the videos that are decoded, as it goes; in this process (test_frames_stage.py has the others)."""
    names = []
    real = video.read_frames

    def counted(path, spec, *, decoder="pyav"):
        names.append(path.name)
        return real(path, spec, decoder=decoder)

    monkeypatch.setattr(frames.video, "read_frames", counted)
    unguarded = frames.in_processes
    monkeypatch.setattr(frames, "in_processes", lambda work, jobs, **_: unguarded(work, jobs, workers=1))
    return names


def test_every_labelled_video_is_cached_as_the_model_reads_it(data, cache):
    assert str(fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)) == "3 made, 0 were there, 0 removed"
    index = cache.index()
    assert set(index) == {clip_name(split, f"A_{split}.mp4") for split in SPLITS} == set(labelled_videos(data.root))
    for clip, path in labelled_videos(data.root).items():
        entry = cache.read(index[clip])
        assert list(entry) == ["frames"]
        np.testing.assert_array_equal(entry["frames"], video.read_frames(path, SPEC))


def test_jobs_that_run_elsewhere_make_the_same_entries(data, cache, tmp_path):
    counted = []

    def elsewhere(work, jobs):
        for job in jobs:
            work(*job)
            counted.append(job[0])
            yield job

    other = frame_cache(tmp_path / "other", "lite")
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    done = fill_frames(other, data.root, SPEC, LIMITS, advance=silent, run=elsewhere)
    assert str(done) == "3 made, 0 were there, 0 removed" and len(counted) == 3
    assert other.index() == cache.index()
    for key in cache.index().values():
        assert other.path(key).read_bytes() == cache.path(key).read_bytes()


def test_a_new_video_costs_one_decode(data, cache, decoded):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert len(decoded) == 3
    decoded.clear()
    data.add("train", "B_new.mp4", shade=7)
    assert str(fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)) == "1 made, 3 were there, 0 removed"
    assert decoded == ["B_new.mp4"]


def test_a_video_that_moves_or_comes_twice_is_not_decoded_again(data, cache, decoded):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    decoded.clear()
    data.add("train", "B_copy.mp4")
    shutil.copy(data.video("train", "A_train.mp4"), data.video("train", "B_copy.mp4"))
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert decoded == []
    index = cache.index()
    assert index["train/videos/B_copy.mp4"] == index["train/videos/A_train.mp4"]


def test_new_content_under_an_old_name_is_decoded_and_the_old_entry_removed(data, cache, decoded, make_clip):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    decoded.clear()
    make_clip(data.video("val", "A_val.mp4"), frames=4, shade=9)
    assert str(fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)) == "1 made, 2 were there, 1 removed"
    assert decoded == ["A_val.mp4"]


@pytest.mark.parametrize("change", [{"count": 5}, {"height": 40}, {"width": 40}])
def test_another_frame_spec_makes_every_entry_again(data, cache, decoded, change):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    other = SPEC.model_copy(update=change)
    assert str(fill_frames(cache, data.root, other, LIMITS, advance=silent)) == "3 made, 0 were there, 3 removed"
    assert len(decoded) == 6
    shapes = {cache.read(key)["frames"].shape for key in cache.index().values()}
    assert shapes == {(other.count, other.height, other.width, 3)}


def test_another_version_of_the_reader_makes_every_entry_again(data, cache, decoded, monkeypatch):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    monkeypatch.setattr(frames.video, "READER_VERSION", video.READER_VERSION + 1)
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert len(decoded) == 6


def test_an_unreadable_video_is_named_while_all_others_are_cached(data, cache, decoded):
    bad = data.video("train", "A_train.mp4")
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(VideoError, match=r"A_train\.mp4: can't be decoded"):
        fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert len(list(cache.folder.glob("*.safetensors"))) == 2
    decoded.clear()
    shutil.copy(data.video("val", "A_val.mp4"), bad)
    assert str(fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)) == "0 made, 2 were there, 0 removed"
    assert decoded == []


def test_missing_videos_are_all_named_while_all_others_are_cached(data, cache):
    for name in ("B_gone.mp4", "C_gone.mp4"):
        data.add("test", name)
    with pytest.raises(ExceptionGroup) as refused:
        fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert {str(error) for error in refused.value.exceptions} == {
        f"{data.video('test', name)}: no such file" for name in ("B_gone.mp4", "C_gone.mp4")
    }
    assert len(list(cache.folder.glob("*.safetensors"))) == 3


def test_a_video_without_a_label_is_left_alone(data, cache, decoded):
    (videos_dir(data.root, "train") / "stranger.mp4").write_bytes(b"not a video")
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert len(decoded) == 3


def test_a_missing_table_is_an_error_and_not_an_empty_split(data, cache):
    labels_path(data.root, "val").unlink()
    with pytest.raises(LabelError, match=r"val_labels\.csv: no such label table"):
        fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)


def test_two_models_of_one_frame_spec_share_their_entries(data, cache, decoded, tmp_path):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    decoded.clear()
    other = frame_cache(tmp_path / "frames-of-another", "dover")
    done = fill_frames(other, data.root, SPEC, LIMITS, advance=silent, others=[cache])
    assert str(done) == "0 made, 0 were there, 3 taken from another model's cache, 0 removed"
    assert decoded == []
    assert other.index() == cache.index()
    for key in cache.index().values():
        assert other.path(key).samefile(cache.path(key))
    # A damaged entry is not shared, and one of our own that is damaged is replaced.
    first, second = sorted(cache.index().values())[:2]
    cache.path(first).unlink()
    cache.path(first).write_bytes(b"damaged")
    other.path(first).unlink()
    other.path(second).unlink()
    other.path(second).write_bytes(b"damaged")
    done = fill_frames(other, data.root, SPEC, LIMITS, advance=silent, others=[cache])
    assert (done.made, done.linked, done.kept) == (1, 1, 1)


def test_entries_without_need_are_listed_and_removed_when_asked_to(data, cache, make_clip):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    old = cache.path(cache.index()["val/videos/A_val.mp4"])
    make_clip(data.video("val", "A_val.mp4"), frames=4, shade=9)
    done = fill_frames(cache, data.root, SPEC, LIMITS, advance=silent, prune=False)
    assert done.unneeded == (old,)
    assert str(done) == "1 made, 2 were there, 0 removed, 1 not needed any more (--prune removes them)"
    assert old.exists()
    done = fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert (done.pruned, done.unneeded) == (1, ())
    assert not old.exists()


def test_the_disk_is_estimated_before_anything_is_decoded(data, cache, decoded, monkeypatch):
    said = []
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("3 clips to decode at 4x32x32: 0.00 GB to write, ")
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent, say=said.append)
    assert len(said) == 1  # nothing to do, nothing to say
    decoded.clear()
    data.add("train", "B_new.mp4", shade=7)
    monkeypatch.setattr(frames, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, SPEC.bytes - 1))
    with pytest.raises(CacheError, match="not enough room for 1 clips to decode"):
        fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert decoded == []


def test_entries_are_read_again_only_when_they_changed_or_on_demand(data, cache, monkeypatch):
    monkeypatch.setattr("qualivision.seen._TOO_FRESH_NS", 0)
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    read = []
    real = Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, key: read.append(key) or real(self, key))
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    assert read == []
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent, verify=True)
    assert sorted(read) == sorted(cache.index().values())
    read.clear()
    altered = cache.path(cache.index()["val/videos/A_val.mp4"])
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    assert str(fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)) == "1 made, 2 were there, 0 removed"
    assert read == [altered.stem]


class Stem:
    """A stem that takes the mean of a clip, and counts how often it is loaded and run."""

    def __init__(self):
        self.loaded = self.run = 0

    def load(self):
        self.loaded += 1
        return self

    def __call__(self, entry):
        self.run += 1
        return {"mean": entry["frames"].mean(axis=(1, 2), dtype=np.float32)}


@pytest.fixture
def stems(tmp_path, data, cache):
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    return stem_cache(tmp_path / "stems", "lite")


def test_stems_are_what_the_stem_makes_of_the_cached_frames(cache, stems):
    stem = Stem()
    assert str(fill_stems(stems, cache, "v1", stem.load, advance=silent)) == "3 made, 0 were there, 0 removed"
    assert (stem.loaded, stem.run) == (1, 3)
    assert set(stems.index()) == set(cache.index())
    for clip, key in stems.index().items():
        frames_of_clip = cache.read(cache.index()[clip])["frames"]
        np.testing.assert_array_equal(stems.read(key)["mean"], frames_of_clip.mean(axis=(1, 2), dtype=np.float32))


def test_a_stem_is_not_loaded_when_nothing_is_missing(cache, stems):
    fill_stems(stems, cache, "v1", Stem().load, advance=silent)
    stem = Stem()
    fill_stems(stems, cache, "v1", stem.load, advance=silent)
    assert (stem.loaded, stem.run) == (0, 0)


def test_another_fingerprint_makes_every_stem_again(cache, stems):
    fill_stems(stems, cache, "v1", Stem().load, advance=silent)
    stem = Stem()
    assert str(fill_stems(stems, cache, "v2", stem.load, advance=silent)) == "3 made, 0 were there, 3 removed"
    assert stem.run == 3


def test_a_new_video_costs_one_run_of_the_stem(data, cache, stems):
    fill_stems(stems, cache, "v1", Stem().load, advance=silent)
    data.add("train", "B_new.mp4", shade=7)
    fill_frames(cache, data.root, SPEC, LIMITS, advance=silent)
    stem = Stem()
    fill_stems(stems, cache, "v1", stem.load, advance=silent)
    assert stem.run == 1


def test_a_damaged_frame_entry_stops_the_stems_and_names_the_stage_before(cache, stems):
    cache.path(cache.index()["val/videos/A_val.mp4"]).write_bytes(b"broken")
    with pytest.raises(CacheError, match="run `qualivision frames lite` again"):
        fill_stems(stems, cache, "v1", Stem().load, advance=silent)


def test_stems_without_frames_name_the_stage_that_is_missing(tmp_path, stems):
    with pytest.raises(CacheError, match="run `qualivision frames lite` first"):
        fill_stems(stems, frame_cache(tmp_path / "none", "lite"), "v1", Stem().load, advance=silent)
