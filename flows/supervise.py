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

import psutil

GRACE_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_NOT_FOUND = 127


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
    me = psutil.Process()
    deadline = GRACE_SECONDS
    while running := [process for process in me.children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]:
        for process in running:
            try:
                process.terminate() if deadline else process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(running, timeout=deadline or 1.0)
        deadline = 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
