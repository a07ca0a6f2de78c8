"""Requests a second of `qualivision serve` with concurrent clients, against `Scorer.score` called in a loop.

python benchmarks/serving.py VIDEO --prompt TEXT [--model ...] [--clients 8] [--rounds 6]

Run it where `qualivision score` finds its model. Both run in turns, on the same clip, and the ratio is of each pair of
turns: what else the machine does then changes both.
"""

from __future__ import annotations

import argparse
import http.client
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from qualivision import environment

BOUNDARY = "boundary"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--clips", type=int, default=32, help="a turn")
    parser.add_argument("--rounds", type=int, default=6)
    given, options = parser.parse_known_args()
    environment.prepare()
    environment.keep_freed_memory()
    from qualivision import Scorer

    scorer = Scorer(given.model)
    chosen = [*(["--model", given.model] if given.model else []), *options]
    server, port = start(chosen)
    try:
        body = form(given.video.read_bytes(), given.prompt)
        for _ in range(2):  # both warm
            scorer.score(given.video, prompt=given.prompt)
            by_server(port, body, given.clients, given.clients)
        ratios = []
        for _ in range(given.rounds):
            before = time.perf_counter()
            for _ in range(given.clips):
                scorer.score(given.video, prompt=given.prompt)
            direct = given.clips / (time.perf_counter() - before)
            served = by_server(port, body, given.clips, given.clients)
            ratios.append(served / direct)
            print(f"direct {direct:.2f} clips/s, served {served:.2f} clips/s, ratio {served / direct:.2f}")
        print(f"median ratio {statistics.median(ratios):.2f}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def start(options: list[str]) -> tuple[subprocess.Popen[str], int]:
    """A server on a free port."""
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "qualivision.cli", "serve"]
    server = subprocess.Popen([*command, "--port", "0", *options], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        if ready := re.match(r"serve: http://127\.0\.0\.1:(\d+) ", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(ready[1])
    raise SystemExit(said)


def form(video: bytes, prompt: str) -> bytes:
    """The request's body."""
    fields = {'name="video"; filename="clip"': video, 'name="prompt"': prompt.encode()}
    return b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"
        for name, content in fields.items()
    ) + (f"--{BOUNDARY}--\r\n".encode())


def by_server(port: int, body: bytes, clips: int, clients: int) -> float:
    """Clips a second."""
    left, turn = iter(range(clips)), threading.Lock()

    def client() -> None:
        asking = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with turn:
                if next(left, None) is None:
                    return
            asking.request("POST", "/v1/score", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
            answer = asking.getresponse()
            if said := answer.read():
                assert answer.status == 200, said

    threads = [threading.Thread(target=client) for _ in range(clients)]
    before = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clips / (time.perf_counter() - before)


if __name__ == "__main__":
    main()
