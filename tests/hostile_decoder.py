"""Stands in for a decoder: the content of a file says what it does to the process that reads it. Light to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from qualivision import video


def read(path: Path, specs, decoder, bounds):
    content = path.read_bytes()
    tried = path.with_suffix(".tried")
    if content == b"crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if content == b"hangs":
        time.sleep(60)
    if content == b"swells":
        bytearray(5 << 30)
    if content == b"crashes once" and not tried.exists():
        tried.touch()
        os._exit(3)
    return video.read_clip(path.with_name("A_0.mp4"), specs)
