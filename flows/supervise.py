"""Runs a command that must not outlive whoever asked for it: `python supervise.py COMMAND...`

The asker holds the other end of stdin. When that end closes, because the asker closed it, ended or was killed, the
command and everything that it started is stopped, whatever process groups and sessions they are in. The same happens
to what the command leaves behind when it ends first: `dvc` killed by the kernel leaves its stage running.

Owns only that. Imports little, for it starts with every stage. The exit code is the command's, as a shell gives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

GRACE_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_NOT_FOUND = 127
_POLL_SECONDS = 0.05


def main(command: list[str]) -> int:
    """Run the command to its end, or to that of stdin."""
    if sys.platform == "linux":  # orphans become children of this process, where they are found
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, frame: _stop_all())
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as err:
        sys.stderr.write(f"{command[0]}: {err.strerror}\n")
        return _NOT_FOUND
    threading.Thread(target=_stop_with_stdin, daemon=True).start()
    code = child.wait()
    _stop_all()
    return code if code >= 0 else 128 - code


def _stop_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    _stop_all()


def _stop_all() -> None:
    """Ask all descendants to end; what has not by the end of the grace is killed."""
    for stop, seconds in ((psutil.Process.terminate, GRACE_SECONDS), (psutil.Process.kill, float("inf"))):
        deadline = time.monotonic() + seconds
        told: set[psutil.Process] = set()
        while running := _running():
            if time.monotonic() > deadline:
                break
            for process in running - told:
                try:
                    stop(process)
                except psutil.NoSuchProcess:
                    continue
            told |= running
            time.sleep(_POLL_SECONDS)


def _running() -> set[psutil.Process]:
    """All descendants. None is waited for with psutil: that would take the command's exit code from `main`."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
