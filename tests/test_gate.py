"""The gate on a small data set of real clips: both models scored now, by the caches or by the videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_models import FRAMES, network, own_store, write_checkpoint, write_clip, write_evaluation, write_rated_videos

from qualivision import gate, registry
from qualivision.evaluation.verdict import Verdict
from qualivision.frames import fill_frames, fill_stems, frame_cache, stem_cache
from qualivision.labels import DIMENSIONS, LabelError, labels_path, videos_dir
from qualivision.models.factory import stem_fingerprint
from qualivision.scoring import Scorer
from qualivision.settings import DecodeSettings, RegistrySettings, load_settings
from qualivision.stages import places
from qualivision.stages.encode import Stem
from qualivision.video import VideoError

ROOT = Path(__file__).parents[1]
LIMITS = DecodeSettings(seconds=20, memory_gb=4)
CLIPS = {"train": 10, "val": 2, "test": 12}
SETTINGS = RegistrySettings(name="judged")


def quietly(done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working folder: params.yaml, clips whose raters agree with checkpoint `good`, an empty MLflow store."""
    with own_store(tmp_path_factory.mktemp("gate")) as folder:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["registry"]["name"] = SETTINGS.name
        params["promote"] |= {"resamples": 200, "min_gain_over_no_video": -2.0}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        write_rated_videos(Path("data"), write_checkpoint(Path("good")), clips=CLIPS)
        yield folder


def put(seed: int) -> int:
    checkpoint = write_checkpoint(Path(f"checkpoint-{seed}"), seed=seed)
    return registry.register(checkpoint, write_evaluation(Path(f"report-{seed}"), checkpoint), SETTINGS).version


def held(version: int | None) -> Verdict:
    return gate.judge(version, load_settings(), Path("data"), advance=lambda uri: quietly)


def test_scores_of_now_are_those_of_the_videos_and_of_the_caches(project, monkeypatch):
    rows = gate.TestRows(Path("data"), LIMITS)
    scorer = Scorer(Path("good"))
    wanted = [
        [scorer.score(videos_dir(Path("data"), "test") / name, prompt=prompt)[dimension] for dimension in DIMENSIONS]
        for name, prompt in zip(rows.table["video_name"], rows.prompts, strict=True)
    ]
    seen = []
    np.testing.assert_allclose(
        rows.scored_by(Path("good"), advance=lambda done, total: seen.append((done, total))), wanted, rtol=1e-4
    )
    assert seen[-1] == (CLIPS["test"], CLIPS["test"])
    fill_caches()
    monkeypatch.setattr(gate.TestRows, "_by_videos", lambda *_: pytest.fail("decoded what is cached"))
    np.testing.assert_allclose(rows.scored_by(Path("good"), advance=quietly), wanted, atol=2e-3)


def fill_caches() -> None:
    frames, stems = frame_cache(places.frames_dir("lite"), "lite"), stem_cache(places.stems_dir("lite"), "lite")
    fill_frames(frames, Path("data"), FRAMES, LIMITS, advance=quietly)
    fill_stems(stems, frames, stem_fingerprint("lite", network()), Stem("lite", network()), advance=quietly)


def test_caches_of_another_frame_spec_or_of_videos_that_changed_are_not_used(project, monkeypatch, tmp_path):
    fill_caches()
    rows = gate.TestRows(Path("data"), LIMITS)
    asked = []

    def by_videos(self, checkpoint, advance):
        asked.append(checkpoint.name)
        return rows.rated

    monkeypatch.setattr(gate.TestRows, "_by_videos", by_videos)
    other = tmp_path / "other"
    shutil.copytree("good", other)
    card = json.loads((other / "model.json").read_text())
    card["frames"]["height"] = 96
    (other / "model.json").write_text(json.dumps(card))
    rows.scored_by(other, advance=quietly)
    clip = videos_dir(Path("data"), "test") / rows.table["video_name"][0]
    before = clip.read_bytes()
    try:
        write_clip(clip, seed=999)
        rows.scored_by(Path("good"), advance=quietly)
    finally:
        clip.write_bytes(before)
    rows.scored_by(Path("good"), advance=quietly)
    assert asked == ["other", "good"]


def test_worse_is_refused_better_is_promoted_and_both_verdicts_are_kept(project):
    worse, good = (
        put(11),
        registry.register(Path("good"), write_evaluation(Path("good-report"), Path("good")), SETTINGS),
    )
    first = held(worse)
    assert first.passed and first.champion is None
    registry.promote(worse, SETTINGS)
    better = held(None)  # the challenger
    assert better.challenger == good.uri
    assert better.passed and better.against_champion[-2].challenger == pytest.approx(1.0, abs=1e-3)
    registry.promote(good.version, SETTINGS)
    bad = put(12)
    refused = held(bad)
    assert not refused.passed
    assert any("significantly worse" in reason for reason in refused.reasons)
    assert registry.verdict_of(bad, SETTINGS) == refused
    with pytest.raises(registry.RegistryError, match="did not pass the gate"):
        registry.promote(bad, SETTINGS)
    assert registry.version_of(registry.CHAMPION, SETTINGS) == good.version
    with pytest.raises(registry.RegistryError, match="is the champion; it needs no gate"):
        held(good.version)


def test_a_test_split_that_is_not_rated_or_has_a_broken_video_is_named(project, tmp_path):
    data = tmp_path / "data"
    shutil.copytree("data", data)
    table = labels_path(data, "test")
    rows = pd.read_csv(table)
    broken = videos_dir(data, "test") / rows["video_name"][3]
    broken.write_bytes(b"no video")
    with pytest.raises(VideoError, match=broken.name):
        gate.TestRows(data, LIMITS).scored_by(Path("good"), advance=quietly)
    rows[["video_name", "Prompt"]].to_csv(table, index=False)
    with pytest.raises(LabelError, match=r"test_labels\.csv: has no MOS, so no model can be compared on it"):
        gate.TestRows(data, LIMITS)
