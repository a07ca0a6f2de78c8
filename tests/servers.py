"""Servers and programs that tests start for real: on this machine alone, on a free port, stopped by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SKIP_NOTHING = "QUALIVISION_TESTS_SKIP_NOTHING"
"""Set where every program that a test needs is to be there, so that a missing one is a failure."""


def needed(found: object, what: str) -> None:
    """Skip a test for want of a program; where nothing is to be skipped, fail it."""
    if not found:
        (pytest.fail if os.environ.get(SKIP_NOTHING) else pytest.skip)(f"{what} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    start = time.monotonic()
    while not ready():
        if process.poll() is not None or time.monotonic() - start > seconds:
            pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """What a server answers, as JSON. Busy, with its SQLite locked, it says 503 or nothing: asked again."""
    for wait in (0.5, 1, 2, 4, 8, 0):
        try:
            reply = httpx.request(method, url, json=body, timeout=60)
            if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
        except httpx.TimeoutException:
            if not wait:
                raise
        time.sleep(wait)
    return reply.raise_for_status().json()


@contextmanager
def running(command: list[str], log: Path, *, ready: Callable[[], bool], **how) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, from ready to stopped."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **how)
    try:
        wait_until(ready, process, log)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    """MLflow's own server with its pages; yields its address. `store` is a database's URI."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
    log = folder / "server.log"
    with running(command, log, ready=lambda: answers(f"{address}/health"), cwd=folder, env=environment):
        yield address


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database; yields its URI for SQLAlchemy."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    needed(found, "PostgreSQL (Debian's package postgresql)")
    needed(find_spec("psycopg2"), "psycopg2 (requirements-test.lock)")
    programs, data = found[-1].parent, folder / "postgresql"
    data.mkdir()
    how: dict[str, object] = {"cwd": "/"}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(data, "postgres", "postgres")
        for parent in data.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
        how |= {"user": "postgres", "group": "postgres"}
    initdb = [programs / "initdb", "-D", data, "-U", "qualivision", "--auth", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, **how)
    port = free_port()
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-c", "fsync=off"]
    ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    up = lambda: subprocess.run(ready, capture_output=True).returncode == 0  # noqa: E731
    with running([*command, "-c", "listen_addresses=127.0.0.1"], folder / "postgresql.log", ready=up, **how):
        yield f"postgresql+psycopg2://qualivision@127.0.0.1:{port}/postgres"


@contextmanager
def browser(folder: Path):
    """Chromium without a screen, driven by Selenium."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    needed(all(programs.values()), "Chromium (Debian's packages chromium and chromium-driver)")
    needed(find_spec("selenium"), "Selenium (requirements-test.lock)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'browser'}",
        "--window-size=1400,1600",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()
