"""Progress: plain lines now and then, a bar on a terminal, nothing on stdout."""

from __future__ import annotations

import io
import sys

import pytest

from qualivision import progress as module
from qualivision.progress import PLAIN_INTERVAL_SECONDS, progress


def test_without_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("decoding", unit="clips") as advance:
        for done in range(101):
            now = done * PLAIN_INTERVAL_SECONDS / 40
            advance(done, 100)
    written = capsys.readouterr()
    assert written.err.splitlines() == [
        "decoding: 40 of 100 clips, 4 clips/s, 0:00:15 left",
        "decoding: 80 of 100 clips, 4 clips/s, 0:00:05 left",
    ]
    assert written.out == ""


def test_short_work_is_silent(capsys):
    with progress("decoding") as advance:
        advance(0, 2)
        advance(2, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [3, 0])
def test_on_a_terminal_a_bar_names_work_and_unit(monkeypatch, capsys, total):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("decoding", unit="epochs") as advance:
        advance(0, total)
        advance(total, total)
    shown = sys.stderr.getvalue()
    assert "decoding" in shown
    assert f"{total}/{total}" in shown
    assert "epochs" in shown
    assert ("epochs/s" in shown) == (total > 0)
    assert capsys.readouterr().out == ""
