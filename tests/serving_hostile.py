"""What a decoder might do with a file made for it. Light, for every worker that is replaced imports it anew."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from qualivision import decoding

READ = decoding._read


def hostile(path: Any, *job: Any) -> Any:
    """In place of `decoding._read`."""
    if path.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "hang":
        time.sleep(60)
    return READ(path, *job)
