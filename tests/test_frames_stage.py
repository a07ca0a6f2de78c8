"""The command `qualivision frames` as it is run: worker processes, hostile files, a full disk, kill -9."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qualivision import frames, video
from qualivision.cache import file_hash
from qualivision.labels import SPLITS, labels_path, videos_dir
from qualivision.stages import frames as stage

REPOSITORY = Path(__file__).parents[1]
CLIPS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_clip):
    """A project folder with a data set of small clips, all different."""
    root = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["lite"]["frames"] = {"count": 64, "height": 96, "width": 96}
    params["decode"] = {"seconds": 20, "memory_gb": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    data = root / "data"
    for split, count in zip(SPLITS, (CLIPS - 2, 1, 1), strict=True):
        videos_dir(data, split).mkdir(parents=True)
        labels_path(data, split).parent.mkdir(parents=True, exist_ok=True)
        names = [f"A_{split}{number}.mp4" for number in range(count)]
        for number, name in enumerate(names):
            make_clip(videos_dir(data, split) / name, frames=12, shade=number + 100 * SPLITS.index(split))
        labels_path(data, split).write_text(
            "".join(f"{row}\n" for row in ["video_name,Prompt", *(f"{n},p" for n in names)])
        )
    return root


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


COMMAND = [sys.executable, "-m", "qualivision.cli", "frames", "lite"]


def run(*more, **how):
    return subprocess.run([*COMMAND, *more], capture_output=True, text=True, timeout=120, **how)


def content(folder):
    return {path.name: file_hash(path) for path in folder.iterdir()}


def test_killed_twenty_times_it_ends_with_the_same_cache(project):
    whole = run()
    assert (whole.returncode, whole.stdout) == (0, f"frames lite: {CLIPS} made, 0 were there, 0 removed\n")
    expected = content(project / "cache/frames/lite")
    shutil.rmtree(project / "cache")
    shutil.rmtree(project / "state", ignore_errors=True)
    moment = random.Random(0)
    entries = project / "cache/frames/lite"
    kills, before = 0, 0
    while kills < 20:
        child = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        start = time.monotonic()
        while time.monotonic() - start < 30 and child.poll() is None:  # until it is at work, then a moment longer
            if len(list(entries.glob("[!.]*.safetensors"))) > before:
                break
            time.sleep(0.002)
        time.sleep(moment.random() * 0.02)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
        there = len(list(entries.glob("[!.]*.safetensors")))
        assert there >= before  # nothing that was done is lost
        if there == CLIPS:  # it was faster than we: finished, compared, and from the start again
            assert run().returncode == 0
            assert content(entries) == expected
            shutil.rmtree(entries)
            there = 0
        before = there
    finished = run()
    assert finished.returncode == 0
    assert content(project / "cache/frames/lite") == expected


def test_a_cut_and_an_altered_entry_are_found_and_made_again(project):
    run()
    expected = content(project / "cache/frames/lite")
    entries = sorted((project / "cache/frames/lite").glob("*.safetensors"))
    entries[0].write_bytes(entries[0].read_bytes()[:-1000])
    altered = bytearray(entries[1].read_bytes())
    altered[-1000] ^= 1
    entries[1].write_bytes(altered)
    assert run().stdout == f"frames lite: 2 made, {CLIPS - 2} were there, 0 removed\n"
    assert content(project / "cache/frames/lite") == expected


def hostile(path, *job):
    """What a decoder might do with a file made for it."""
    if path.name == "A_train3.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "A_train5.mp4":
        time.sleep(60)
    if path.name == "A_train7.mp4":
        raise video.VideoError(path, "is damaged")
    return DECODE_ONE(path, *job)


DECODE_ONE = frames._decode_one


def test_hostile_files_are_quarantined_and_all_others_cached(project, monkeypatch):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["decode"]["seconds"] = 4
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(frames, "_decode_one", hostile)
    with pytest.raises(ExceptionGroup, match=f"3 of {CLIPS} failed"):
        stage.run("lite", workers=2)
    listed = json.loads((project / "reports/quarantine-lite.json").read_text())
    assert listed == [
        {
            "video": "data/train/videos/A_train3.mp4",
            "cause": "crashes the process that reads it (SIGSEGV), twice",
        },
        {"video": "data/train/videos/A_train5.mp4", "cause": "takes longer than 4 s, twice"},
        {"video": "data/train/videos/A_train7.mp4", "cause": "is damaged"},
    ]
    assert len(list((project / "cache/frames/lite").glob("*.safetensors"))) == CLIPS - 3
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert str(stage.run("lite")) == f"3 made, {CLIPS - 3} were there, 0 removed"
    assert not (project / "reports/quarantine-lite.json").exists()


def test_a_disk_that_fills_up_is_one_clear_line(project):
    """The limit of a file's size stands in for the disk's: the write fails in a worker, in the middle."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = run(preexec_fn=limit)
    assert done.returncode == 1
    assert "can't write cache/frames/lite/" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((project / "cache/frames/lite").iterdir()) == []
    assert run().returncode == 0
