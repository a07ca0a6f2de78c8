"""The engine of the server: what is admitted, batches, models that change, decoders that are lost, a stop."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from serving_hostile import hostile
from serving_parts import PROMPT, FakeDecoders, FakeScorer
from small_models import write_clip

from qualivision import decoding, registry, tracking
from qualivision.serving import engine as room
from qualivision.serving.champion import Follower, alias_of
from qualivision.serving.engine import ClosingError, Engine, FullError
from qualivision.serving.observing import Metrics
from qualivision.settings import DecodeSettings, ServeSettings
from qualivision.video import VideoError


@pytest.fixture
def begin(monkeypatch):
    """`begin(scorer, queue=2, ...)` starts an engine without worker processes."""
    monkeypatch.setattr(room, "Decoders", FakeDecoders)
    engines = []

    def make(scorer, **changes):
        engines.append(Engine(scorer, ServeSettings(**changes), DecodeSettings(), Metrics()))
        return engines[-1]

    yield make
    for engine in engines:
        engine.scorer.gate.set()
        engine._decoders.release()
        engine.close(5)


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def counted(metrics, name):
    return next(float(line.split()[1]) for line in metrics.text().decode().splitlines() if line.split()[0] == name)


# Admission


def test_no_more_are_admitted_than_the_queue_holds_and_a_place_that_gets_free_is_taken(begin, tmp_path):
    scorer = FakeScorer()
    scorer.gate.clear()
    engine = begin(scorer, queue=2)
    admitted = [engine.submit(tmp_path, PROMPT) for _ in range(2)]
    with pytest.raises(FullError, match="2 clips are waiting") as full:
        engine.submit(tmp_path, PROMPT)
    assert 1 <= full.value.retry_after <= 60
    with pytest.raises(FullError):
        engine.check_room()
    scorer.gate.set()
    assert [clip.result(5)["Overall"] for clip in admitted] == [3.0, 3.0]
    assert engine.submit(tmp_path, PROMPT).result(5).model == scorer.name


def test_retry_after_follows_how_long_clips_took(begin, tmp_path):
    engine = begin(FakeScorer(), queue=1)
    engine._seconds_per_clip = 7.5
    engine._decoders.hold = True
    engine.submit(tmp_path, PROMPT)
    with pytest.raises(FullError) as full:
        engine.submit(tmp_path, PROMPT)
    assert full.value.retry_after == 8
    engine._decoders.release()
    for _ in range(100):
        until(lambda: engine._admitted == 0)
        engine._decoders.hold = False
        engine.submit(tmp_path, PROMPT).result(5)
    assert engine._seconds_per_clip < 0.1


def test_a_clip_that_nobody_waits_for_is_not_scored_but_holds_its_place_until_its_worker_is_free(begin, tmp_path):
    scorer = FakeScorer()
    engine = begin(scorer, queue=1)
    engine._decoders.hold = True
    assert engine.submit(tmp_path, PROMPT).cancel()
    with pytest.raises(FullError):  # or clients that come and go would fill the workers' queue
        engine.submit(tmp_path, PROMPT)
    engine._decoders.release()
    until(lambda: engine._admitted == 0)
    assert scorer.batches == []


# Batches


def test_what_waits_is_scored_together_up_to_the_batch_size(begin, tmp_path):
    scorer = FakeScorer()
    scorer.gate.clear()
    engine = begin(scorer, batch_size=3)
    first = engine.submit(tmp_path, "0")
    assert scorer.began.wait(5)
    rest = [engine.submit(tmp_path, str(number)) for number in range(1, 6)]
    scorer.gate.set()
    assert [clip.result(5).prompt for clip in [first, *rest]] == ["0", "1", "2", "3", "4", "5"]
    assert scorer.batches == [["0"], ["1", "2", "3"], ["4", "5"]]


def test_a_clip_that_is_alone_does_not_wait_for_others(begin, tmp_path):
    engine = begin(FakeScorer(), batch_size=8, batch_wait_ms=1000)
    start = time.monotonic()
    engine.submit(tmp_path, PROMPT).result(5)
    assert time.monotonic() - start < 0.5


def test_a_clip_waits_for_one_that_is_still_being_decoded(begin, tmp_path):
    scorer = FakeScorer()
    engine = begin(scorer, batch_size=2, batch_wait_ms=1000)
    engine._decoders.hold = True
    slow = engine.submit(tmp_path, "slow")
    held = engine._decoders.held.pop()
    engine._decoders.hold = False
    quick = engine.submit(tmp_path, "quick")
    time.sleep(0.05)
    engine._decoders.held.append(held)
    engine._decoders.release()
    assert (quick.result(5).prompt, slow.result(5).prompt) == ("quick", "slow")
    assert scorer.batches == [["quick", "slow"]]


def test_a_clip_that_spoils_its_batch_fails_alone(begin, tmp_path):
    scorer = FakeScorer()
    scorer.gate.clear()
    engine = begin(scorer, batch_size=4)
    engine.submit(tmp_path, "first")
    assert scorer.began.wait(5)
    clips = [engine.submit(tmp_path, prompt) for prompt in ("a", "spoilt", "b")]
    scorer.gate.set()
    assert [clips[0].result(5).prompt, clips[2].result(5).prompt] == ["a", "b"]
    with pytest.raises(RuntimeError, match="no kernel image"):
        clips[1].result(5)
    until(lambda: engine._admitted == 0)
    assert engine.ready


# Models that change


def test_a_clip_keeps_the_model_it_came_with_and_no_batch_mixes_two(begin, tmp_path):
    old, new = FakeScorer("models:/fake/1", 1.0), FakeScorer("models:/fake/2", 2.0)
    old.gate.clear()
    engine = begin(old, batch_size=8)
    before = [engine.submit(tmp_path, "old 0")]
    assert old.began.wait(5)
    before += [engine.submit(tmp_path, f"old {number}") for number in (1, 2)]
    engine.swap(new)
    after = [engine.submit(tmp_path, f"new {number}") for number in range(3)]
    old.gate.set()
    assert {(clip.result(5).model, clip.result(5)["Overall"]) for clip in before} == {("models:/fake/1", 1.0)}
    assert {(clip.result(5).model, clip.result(5)["Overall"]) for clip in after} == {("models:/fake/2", 2.0)}
    assert sorted(prompt for batch in old.batches for prompt in batch) == ["old 0", "old 1", "old 2"]
    assert new.batches == [["new 0", "new 1", "new 2"]]


def test_nothing_is_lost_while_models_change_under_load(begin, tmp_path):
    engine = begin(FakeScorer("models:/fake/0", 1.0), queue=1000, batch_size=4)
    found, failed = [], []

    def client():
        for _ in range(150):
            try:
                found.append(engine.submit(tmp_path, PROMPT).result(10))
            except Exception as err:  # noqa: BLE001 - whatever it is, it is a lost clip
                failed.append(err)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 30):
        engine.swap(FakeScorer(f"models:/fake/{number}", 1 + number / 10))
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    assert (len(found), failed) == (600, [])
    assert all(scores["Overall"] == 1 + int(scores.model.rpartition("/")[2]) / 10 for scores in found)
    assert len({scores.model for scores in found}) > 1
    assert engine.submit(tmp_path, PROMPT).result(5).model == "models:/fake/29"


def test_a_model_that_is_out_is_let_go(begin, tmp_path):
    old = FakeScorer()
    engine = begin(old)
    engine.submit(tmp_path, PROMPT).result(5)
    gone = weakref.ref(old)
    engine.swap(FakeScorer("models:/fake/2"))
    del old
    until(lambda: gc.collect() is not None and gone() is None)


# Following the champion


class Registry:
    """What the alias means, as a test says; and what happens when it is asked or loaded from."""

    def __init__(self, monkeypatch):
        self.means = "models:/fake/1"
        self.away = False
        self.broken = set()
        self.loaded = []
        monkeypatch.setattr(tracking, "client", object)
        monkeypatch.setattr(registry, "meant", self.meant)

    def meant(self, store, uri):
        assert uri == "models:/fake@champion"
        if self.away:
            raise ConnectionError("no route to host")
        return self.means

    def load(self, uri):
        self.loaded.append(uri)
        if uri in self.broken:
            raise OSError("its files can't be read")
        return FakeScorer(uri)

    def followed(self, metrics, swap, poll_seconds=60.0):
        return Follower(
            "models:/fake@champion", "models:/fake/1", swap, metrics, poll_seconds=poll_seconds, loading=self.load
        )


def test_a_new_champion_is_loaded_once_and_takes_over(monkeypatch):
    store, metrics, swapped = Registry(monkeypatch), Metrics(), []
    follower = store.followed(metrics, lambda scorer: swapped.append(scorer.name))
    follower.look()
    assert (store.loaded, swapped) == ([], [])
    store.means = "models:/fake/2"
    follower.look()
    follower.look()
    assert store.loaded == swapped == ["models:/fake/2"]
    store.means = "models:/fake/1"  # back again
    follower.look()
    assert swapped == ["models:/fake/2", "models:/fake/1"]
    assert counted(metrics, "qualivision_model_swaps_total") == 2


def test_a_champion_that_cant_be_loaded_changes_nothing_and_is_not_tried_at_every_look(monkeypatch, caplog):
    store, metrics, swapped = Registry(monkeypatch), Metrics(), []
    follower = store.followed(metrics, lambda scorer: swapped.append(scorer.name))
    store.means, store.broken = "models:/fake/2", {"models:/fake/2"}
    follower.look()
    follower.look()
    assert (store.loaded, swapped) == (["models:/fake/2"], [])
    assert counted(metrics, "qualivision_model_swaps_failed_total") == 1
    assert "models:/fake/2 can't be loaded; models:/fake/1 scores on" in caplog.text
    store.broken = set()
    follower._failed_at -= 301  # a while later its files are there
    follower.look()
    assert swapped == ["models:/fake/2"]


def test_after_one_that_failed_the_next_champion_is_loaded_at_once(monkeypatch):
    store, swapped = Registry(monkeypatch), []
    follower = store.followed(Metrics(), lambda scorer: swapped.append(scorer.name))
    store.means, store.broken = "models:/fake/2", {"models:/fake/2"}
    follower.look()
    store.means = "models:/fake/3"
    follower.look()
    assert swapped == ["models:/fake/3"]


def test_a_registry_that_is_away_is_counted_and_said_once(monkeypatch, caplog):
    store, metrics, swapped = Registry(monkeypatch), Metrics(), []
    follower = store.followed(metrics, lambda scorer: swapped.append(scorer.name))
    store.away, store.means = True, "models:/fake/2"
    for _ in range(3):
        follower.look()
    assert counted(metrics, "qualivision_registry_polls_failed_total") == 3
    assert caplog.text.count("can't be looked up") == 1
    store.away = False
    follower.look()
    assert swapped == ["models:/fake/2"]


def test_the_follower_looks_by_itself_until_it_is_stopped(monkeypatch):
    store, swapped = Registry(monkeypatch), []
    follower = store.followed(Metrics(), lambda scorer: swapped.append(scorer.name), poll_seconds=0.01)
    follower.start()
    store.means = "models:/fake/2"
    until(lambda: swapped == ["models:/fake/2"])
    follower.stop()
    follower._thread.join(5)
    assert not follower._thread.is_alive()


@pytest.mark.parametrize(
    ("model", "followed"),
    [
        (None, "models:/qualivision@champion"),
        ("models:/other@staging", "models:/other@staging"),
        # pinned
        ("models:/qualivision/3", None),
        ("runs:/abc/model", None),
        ("checkpoints/lite", None),
        ("user@host", None),
    ],
)
def test_only_an_alias_is_followed(model, followed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert alias_of(model) == followed


# Decoders that are lost


def test_a_file_that_crashes_or_hangs_its_decoder_is_refused_and_others_are_scored(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "_read", hostile)
    metrics = Metrics()
    engine = Engine(FakeScorer(), ServeSettings(workers=2), DecodeSettings(seconds=5), metrics)
    try:
        for name in ("crash", "hang", "good"):
            write_clip(tmp_path / name, container="mp4")
        good = engine.submit(tmp_path / "good", PROMPT)
        assert good.result(30)["Overall"] == 3.0
        crash, hang = engine.submit(tmp_path / "crash", PROMPT), engine.submit(tmp_path / "hang", PROMPT)
        with pytest.raises(VideoError, match=r"crashes the process that reads it \(SIGSEGV\)"):
            crash.result(30)
        assert engine.submit(tmp_path / "good", PROMPT).result(30)["Overall"] == 3.0
        with pytest.raises(VideoError, match="takes longer than 5 s"):
            hang.result(30)
        assert counted(metrics, "qualivision_decoders_lost_total") == 2
        assert counted(metrics, "qualivision_videos_refused_total") == 2
    finally:
        engine.close()


# The stop


def test_a_stop_waits_for_what_was_admitted_and_admits_no_more(begin, tmp_path):
    scorer = FakeScorer()
    scorer.gate.clear()
    engine = begin(scorer)
    clip = engine.submit(tmp_path, PROMPT)
    stop = threading.Thread(target=engine.close, args=(10,))
    stop.start()
    until(lambda: not engine.ready)
    with pytest.raises(ClosingError, match="shutting down"):
        engine.submit(tmp_path, PROMPT)
    assert stop.is_alive()
    scorer.gate.set()
    assert clip.result(5)["Overall"] == 3.0
    stop.join(5)
    assert not stop.is_alive()
    assert not engine._thread.is_alive()


def test_a_stop_does_not_wait_for_ever(begin, tmp_path):
    scorer = FakeScorer()
    scorer.gate.clear()
    engine = begin(scorer)
    engine.submit(tmp_path, PROMPT)
    start = time.monotonic()
    engine.close(0.2)
    assert time.monotonic() - start < 3
