"""Damaged videos of every codec: nothing crashes or hangs the caller, and what was cut off is never taken for whole."""

from __future__ import annotations

from fuzzing import MUTATIONS, SEEDS, fuzz, scored_as_if_fine


def test_no_damaged_file_takes_the_run_with_it_or_is_read_as_if_it_were_whole(tmp_path):
    files = 3 * len(SEEDS) * len(MUTATIONS)
    found = fuzz(tmp_path, files, workers=2)
    assert found.total() == files
    assert scored_as_if_fine(found) == 0
    verdicts = {verdict for _, _, verdict in found}
    assert {"refused", "same"} <= verdicts <= {"refused", "same", "other", "lost"}
    # A container or a codec that can tell does tell.
    h264 = [count for (name, _, verdict), count in found.items() if name.startswith("h264") and verdict == "other"]
    assert sum(h264) < files // 20
