"""`qualivision serve` as a process on a socket: slow and hostile clients, a champion that changes, a stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from serving_parts import FORM_TYPE, PROMPT, form
from small_models import own_store, write_checkpoint, write_clip, write_evaluation

from qualivision import tracking
from qualivision.registry import meant, promote, register
from qualivision.scoring import ModelNotFoundError, Scorer
from qualivision.settings import RegistrySettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MOST_BYTES = 300_000
SERVE = {
    "max_megabytes": MOST_BYTES / 1e6,
    "header_seconds": 1,
    "body_seconds": 2,
    "connections": 20,
    "queue": 3,
    "workers": 1,
    "poll_seconds": 0.3,
}
REGISTRY = RegistrySettings(name="qualivision")


class Server:
    """A server process."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qualivision.cli", "serve", "--port", "0", *options],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )
        end = time.monotonic() + 90
        while not (ready := re.search(r"^serve: http://127\.0\.0\.1:(\d+) scores with (\S+);", self.said(), re.M)):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)
        self.port, self.model = int(ready[1]), ready[2]

    def said(self) -> str:
        return self.log.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of one answer."""
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            asking.request(method, path, body, headers or {})
            answer = asking.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            asking.close()

    def score(self, body):
        return self.ask("POST", "/v1/score", body, FORM_TYPE)

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project folder with an MLflow store and small limits."""
    with own_store(tmp_path_factory.mktemp("server")) as folder:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        Path("params.yaml").write_text(yaml.safe_dump({**params, "serve": SERVE}))
        yield folder


@pytest.fixture(scope="module")
def versions(place):
    """Two registered checkpoints, the first of which is champion: their folders by URI."""
    folders = {}
    for number in (1, 2):
        folder = write_checkpoint(place / f"checkpoint-{number}", seed=number)
        folders[register(folder, write_evaluation(place / f"report-{number}", folder), REGISTRY).uri] = folder
    promote(1, REGISTRY, override="a test")
    return folders


@pytest.fixture(scope="module")
def clip(place):
    return write_clip(place / "clip.mp4")


@pytest.fixture(scope="module")
def server(place, versions):
    running = Server(place)
    yield running
    assert running.stop() == 0


@pytest.fixture(autouse=True)
def it_still_scores(request):
    """Whatever a client did, the next one gets its scores."""
    yield
    if "server" in request.fixturenames:
        server, clip = request.getfixturevalue("server"), request.getfixturevalue("clip")
        assert server.score(form(clip.read_bytes()))[0] == 200


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def received(connection) -> tuple[int, dict]:
    """Status and body of what comes until the server closes."""
    got = b""
    while chunk := connection.recv(65536):
        got += chunk
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_the_champion_is_served_and_named(server, versions, clip):
    assert server.model == "models:/qualivision/1"
    status, headers, body = server.score(form(clip.read_bytes()))
    found = json.loads(body)
    assert (status, found["model"]) == (200, "models:/qualivision/1")
    assert found["request_id"] == headers["x-request-id"]
    expected = Scorer(versions["models:/qualivision/1"]).score(clip, prompt=PROMPT)
    assert found["scores"] == pytest.approx(dict(expected.values), abs=2e-4)


def test_what_an_alias_means_is_looked_up_without_its_files(versions):
    store = tracking.client()
    store.set_registered_model_alias("qualivision", "staging", "2")
    assert meant(store, "models:/qualivision@staging") == "models:/qualivision/2"
    assert meant(store, "models:/qualivision/1") == "models:/qualivision/1"
    with pytest.raises(ModelNotFoundError, match="models:/other@champion: there is no champion yet"):
        meant(store, "models:/other@champion")


# Slow clients


def drip(connection, pieces) -> None:
    """Send one piece after the other, slowly, until something is answered."""
    connection.settimeout(0.2)
    for piece in pieces:
        try:
            connection.sendall(piece)
            if connection.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            continue
    connection.settimeout(5)


def test_headers_that_drip_are_cut_off(server):
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        drip(connection, (b"X-%d: y\r\n" % number for number in range(50)))
        status, error = received(connection)
    assert (status, error["code"]) == (408, "too_slow")
    assert 0.8 < time.monotonic() - start < 3


def test_a_connection_that_says_nothing_is_closed(server):
    with server.connect() as connection:
        start = time.monotonic()
        assert received(connection)[0] == 408
        assert 0.8 < time.monotonic() - start < 3


def test_a_second_request_whose_headers_drip_is_cut_off_too(server):
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert received(connection)[0] == 408


def test_a_body_that_drips_is_cut_off(server):
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
        connection.sendall(f"Content-Type: {FORM_TYPE['content-type']}\r\n\r\n".encode())
        drip(connection, (bytes([byte]) for byte in form(b"x" * 500)))
        status, error = received(connection)
    assert (status, error["code"]) == (408, "too_slow")
    assert 1.5 < time.monotonic() - start < 6


def test_a_client_that_never_takes_its_answer_is_cut_off(server):
    page, times = "/static-offline-docs/swagger-ui-bundle.js", 10
    whole = len(server.ask("GET", page)[2])
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"GET {page} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * times)
        time.sleep(3)  # more than body_seconds
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                got += len(chunk)
    assert got < whole * times


def test_no_more_connections_are_held_than_are_allowed(server):
    held = [server.connect() for _ in range(20)]
    try:
        with server.connect() as connection:
            assert received(connection) == (
                503,
                {"code": "too_many_connections", "message": "too many connections are open; try again"},
            )
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)


# Large and broken requests


def test_a_length_that_is_too_large_is_refused_before_the_body_is_sent(server):
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n")
        connection.sendall(f"Content-Type: {FORM_TYPE['content-type']}\r\nExpect: 100-continue\r\n\r\n".encode())
        got = connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 413 "), got
        assert time.monotonic() - start < 1


def test_a_client_that_sends_too_much_sees_why_it_is_refused(server):
    status, headers, body = server.score(form(bytes(20 * MOST_BYTES)))
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    assert headers["connection"] == "close"


def test_chunks_are_counted(server):
    big = form(bytes(5 * MOST_BYTES))
    status, _, body = server.score(iter([big[at : at + 50_000] for at in range(0, len(big), 50_000)]))
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"certainly no HTTP\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000,
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
    ids=["tls", "prose", "headers", "negative", "two lengths"],
)
def test_what_is_no_http_is_refused(server, sent):
    with server.connect() as connection:
        connection.sendall(sent)
        status, error = received(connection)
    assert (status, error["code"]) == (400, "malformed")


def test_a_client_that_goes_away_in_the_middle_is_no_defect(server):
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
            connection.sendall(f"Content-Type: {FORM_TYPE['content-type']}\r\n\r\nabc".encode())
    time.sleep(0.1)
    assert "Traceback" not in server.said()


# Load


def test_more_than_the_queue_holds_get_429_and_the_rest_their_scores(server, clip):
    found = []
    threads = [threading.Thread(target=lambda: found.append(server.score(form(clip.read_bytes())))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 429}
    for status, headers, body in found:
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert json.loads(body)["error"]["code"] == "queue_full"


def test_a_new_champion_takes_over_under_load_and_every_answer_is_of_the_model_it_names(server, versions, clip):
    expected = {
        uri: pytest.approx(dict(Scorer(folder).score(clip, prompt=PROMPT).values), abs=2e-4)
        for uri, folder in versions.items()
    }
    found, enough = [], threading.Event()

    def client():
        while not enough.is_set():
            found.append(server.score(form(clip.read_bytes())))

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    promote(2, REGISTRY, override="a test")
    end = time.monotonic() + 30
    while time.monotonic() < end and (len(found) < 10 or b"qualivision/2" not in found[-1][2]):
        time.sleep(0.1)
    time.sleep(0.3)
    enough.set()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in found} == {200}
    answers = [json.loads(body) for _, _, body in found]
    assert {answer["model"] for answer in answers} == set(versions)
    assert all(answer["scores"] == expected[answer["model"]] for answer in answers)
    assert json.loads(server.ask("GET", "/v1/model")[2])["model"] == "models:/qualivision/2"
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert "qualivision_model_swaps_total 1.0" in metrics


def test_the_log_is_one_json_object_a_line(server):
    server.ask("GET", "/health", headers={"X-Request-ID": "look-for-me"})
    time.sleep(0.1)
    lines = server.said().splitlines()
    assert lines[0].startswith("serve: ")
    requests = [json.loads(line) for line in lines[1:]]
    assert any(line.get("request_id") == "look-for-me" and line["status"] == 200 for line in requests)


# The stop


def test_a_stop_answers_what_was_admitted_and_leaves_nothing_behind(place, versions, make_clip):
    slow = make_clip(place / "slow.mp4", width=640, height=480, frames=400).read_bytes()
    scratch = place / "scratch"
    scratch.mkdir()
    folder = versions["models:/qualivision/1"]
    server = Server(place, "--model", str(folder), "--max-megabytes", "64", TMPDIR=str(scratch))
    found = []
    threads = [threading.Thread(target=lambda: found.append(server.score(form(slow)))) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while "qualivision_queue_clips 3.0" not in server.ask("GET", "/metrics")[2].decode():
            assert time.monotonic() < end and not found
            time.sleep(0.01)
        children = server.children()
        assert children
        os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C, which the workers get too
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)  # and an impatient supervisor
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in found] == [200] * 3
        assert server.process.wait(20) == 0
    finally:
        server.stop()
    end = time.monotonic() + 5
    while any(map(runs, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(runs, children))
    assert not list(scratch.glob("qualivision-*"))
    assert "Traceback" not in server.said()
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_an_address_that_is_taken_is_one_line_before_any_model_is_loaded(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "qualivision.cli", "serve", "--port", str(port), "--model", "nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr == (
        f"127.0.0.1:{port}: can't be listened on: Address already in use; choose others by --host and --port\n"
    )
