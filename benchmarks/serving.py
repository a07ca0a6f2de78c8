"""From approval to load: what the registry decides, what `qualivision serve` costs, and what it stands.

    python benchmarks/serving.py                                  after `dvc repro`, in the project's folder
    python benchmarks/serving.py --seconds 60 --clients 8 --hostile 500

On an MLflow server of its own, with the model of `checkpoints/lite` and two that are made worse. In one run:

    approval   a copy that is hardly worse becomes champion, the model takes its place, a bad copy is refused; rollback
    direct     one process calls the model in a loop: what the machine can do
    load       so many clients send clips of the test split, one after the other, for so long
    hostile    the same load; hostile requests are mixed in, and half-way the other version becomes champion

Exit code 1 when a promise is broken: a good request that got neither scores nor a 429, scores that are not those of the
version that they name, a hostile request that was not refused with a reason, a throughput below 0.85 of direct, a model
that the gate should not let through.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WANTED_SHARE = 0.85
CLIPS = 40
MOST_BYTES = 2_000_000
BODY_SECONDS = 3
_BOUNDARY = "hostile-and-good-alike"
_FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}

Answer = tuple[int, dict[str, Any]]
Clip = tuple[bytes, str]


def form(video: bytes, prompt: str, *, filename: str = "clip.mp4") -> bytes:
    """A multipart form as clients send it."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{prompt}\r\n--{_BOUNDARY}\r\n'
    head += f'Content-Disposition: form-data; name="video"; filename="{filename}"\r\nContent-Type: video/mp4\r\n\r\n'
    return head.encode() + video + f"\r\n--{_BOUNDARY}--\r\n".encode()


def ask(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """Status and JSON of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# The project that is served


def prepare(folder: Path, data: Path, rows: int) -> None:
    """A working folder with some of the test split, and the training labels."""
    from qualivision.labels import labels_path, read_labels, videos_dir

    for split, count in (("train", None), ("test", rows)):
        table = read_labels(labels_path(data, split), require_mos=False)[:count]
        path = labels_path(folder / "data", split)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    videos = videos_dir(folder / "data", "test")
    videos.mkdir(parents=True)
    for name in table["video_name"]:
        (videos / name).symlink_to(videos_dir(data, "test") / name)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow's own server on SQLite; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    how = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=how, start_new_session=True)
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def made_worse(checkpoint: Path, to: Path, noise: float) -> Path:
    """A copy whose weights are off by so much of themselves."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, to)
    torch.manual_seed(0)
    tensors = {
        name: value * (1 + noise * torch.randn_like(value)) if value.is_floating_point() else value
        for name, value in load_file(to / "model.safetensors").items()
    }
    save_file(tensors, to / "model.safetensors")
    return to


def register(checkpoint: Path, report: Path, folder: Path) -> int:
    """Register a checkpoint, as if the evaluation at hand were its own; returns its version."""
    from qualivision import registry
    from qualivision.settings import load_settings
    from qualivision.training.checkpoint import checkpoint_id

    said = folder / f"report-of-{checkpoint.name}"
    said.mkdir()
    metrics = json.loads((report / "metrics.json").read_text())
    (said / "metrics.json").write_text(json.dumps(metrics | {"checkpoint": checkpoint_id(checkpoint)}))
    return registry.register(checkpoint, said, load_settings().registry).version


def approval(folder: Path, checkpoint: Path, report: Path) -> tuple[dict[str, Path], list[str]]:
    """The story of three versions; returns {version's URI: checkpoint} of the first two, and what went wrong."""
    from qualivision import registry
    from qualivision.gate import judge
    from qualivision.settings import load_settings

    settings = load_settings()
    fair = made_worse(checkpoint, folder / "fair", 0.2)
    bad = made_worse(checkpoint, folder / "bad", 1.0)
    found, broken = {}, []
    for path, passes in ((fair, True), (checkpoint, True), (bad, False)):
        version = register(path, report, folder)
        found[f"models:/{settings.registry.name}/{version}"] = path
        verdict = judge(version, settings, Path("data"), advance=lambda uri: lambda done, total: None)
        print(f"approval  {verdict.as_text()}\n".replace("\n", "\n          ").rstrip(" "))
        if verdict.passed != passes:
            broken.append(f"version {version} {'passed' if verdict.passed else 'did not pass'} the gate")
        if verdict.passed:
            registry.promote(version, settings.registry, why="a benchmark")
    try:
        registry.promote(version, settings.registry)
        broken.append(f"version {version} was promoted although it did not pass")
    except registry.RegistryError as err:
        print(f"approval  promote {version}: {err}")
    start = time.perf_counter()
    left, back = registry.rollback(settings.registry, why="a benchmark")
    print(f"approval  rollback from {left} to {back}: {time.perf_counter() - start:.2f} s\n")
    return dict(list(found.items())[:2]), broken


def promote(version: int) -> None:
    """Make a version champion, whatever the gate would say."""
    from qualivision import registry
    from qualivision.settings import load_settings

    registry.promote(version, load_settings().registry, override="a benchmark")


def wanted_scores(models: dict[str, Path], clips: list[Clip], folder: Path) -> dict[str, list[dict[str, float]]]:
    """What each version says of each clip when it is called directly, as the server rounds it."""
    from qualivision.scoring import Scorer

    found = {}
    for uri, checkpoint in models.items():
        scorer = Scorer(checkpoint)
        found[uri] = []
        for number, (video, prompt) in enumerate(clips):
            path = folder / f"clip-{number}"
            path.write_bytes(video)
            values = scorer.score(path, prompt=prompt).values
            found[uri].append({name: round(value, 4) for name, value in values.items()})
    return found


def call_directly(checkpoint: Path, clips: list[Path], prompts: list[str], seconds: float, out: Any) -> None:
    """A process that scores clip after clip; says how many a second."""
    from qualivision.scoring import Scorer

    environment.keep_freed_memory()
    scorer = Scorer(checkpoint)
    for path, prompt in zip(clips[:4], prompts, strict=False):
        scorer.score(path, prompt=prompt)
    start, done = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        scorer.score(clips[done % len(clips)], prompt=prompts[done % len(clips)])
        done += 1
    out.put(done / took)


class Server:
    """`qualivision serve` in the working folder, on a free port."""

    def __init__(self, log: Path) -> None:
        options = ["--port", "0", "--max-megabytes", str(MOST_BYTES / 1e6), "--poll-seconds", "1"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qualivision.cli", "serve", *options], stderr=out, start_new_session=True
            )
        while not (ready := re.search(r"^serve: http://127\.0\.0\.1:(\d+) scores", log.read_text(), re.M)):
            if self.process.poll() is not None:
                sys.exit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        self.port = int(ready[1])

    def stop(self) -> int:
        """Its exit code after a SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


# Good requests


class Load:
    """Clients that send clips one after the other until told to stop, and hold the answers against what is wanted."""

    def __init__(self, port: int, clips: list[Clip], wanted: dict[str, list[dict[str, float]]]) -> None:
        self._port, self._clips, self._wanted = port, clips, wanted
        self._bodies = [form(*clip) for clip in clips]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.codes, self.models = Counter[str](), Counter[str]()
        self.seconds: list[float] = []
        self.broken: list[str] = []

    def run(self, clients: int, seconds: float, meanwhile: Callable[[], None] | None = None) -> float:
        """Send for so long; returns clips scored a second."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        if meanwhile:
            meanwhile()
        time.sleep(max(0.0, seconds - (time.perf_counter() - start)))
        self._stop.set()
        for thread in threads:
            thread.join()
        return self.codes["200"] / (time.perf_counter() - start)

    def _client(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        at = number
        while not self._stop.is_set():
            start = time.perf_counter()
            try:
                connection.request("POST", "/v1/score", self._bodies[at % len(self._clips)], _FORM)
                answer = connection.getresponse()
                code, said = str(answer.status), json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as err:
                connection.close()
                code, said = type(err).__name__, {}
            self._note(at % len(self._clips), code, said, time.perf_counter() - start)
            if code == "429":
                time.sleep(float(answer.headers["Retry-After"]))
            at += 1

    def _note(self, clip: int, code: str, said: dict[str, Any], seconds: float) -> None:
        with self._lock:
            self.codes[code] += 1
            if code == "200":
                self.seconds.append(seconds)
                self.models[said["model"]] += 1
                wanted = self._wanted[said["model"]][clip]
                if any(abs(said["scores"][name] - value) > 2e-3 for name, value in wanted.items()):
                    self.broken.append(f"{said['model']} says {said['scores']} of clip {clip}, alone it says {wanted}")
            elif code != "429":
                self.broken.append(f"a good request got {code}: {said}")

    def summary(self) -> str:
        """Codes and times."""
        times = sorted(self.seconds)
        p50, p95 = (times[int(share * (len(times) - 1))] for share in (0.50, 0.95))
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(self.codes.items()))
        return f"{codes}; p50 {p50:.2f} s, p95 {p95:.2f} s"


# Hostile requests: each gives the status of its answer and what it said


def hostile_kinds(clip: bytes) -> dict[str, Callable[[int], Answer]]:
    """{what is tried: a function of the port}."""
    post = "/v1/score"
    still = _made_clip(frames=2, seconds_apart=4000)
    huge = _claiming(_made_clip(frames=2, container="gif"), 60_000, 30_000)
    lines = [b"--wrong\r\n", b"Content-Disposition: form-data\r\n", b"\r\n\r\n", b"--" + _BOUNDARY.encode()]

    def sent(video: bytes, prompt: str = "a cat", **more: str) -> Callable[[int], Answer]:
        return lambda port: ask(port, "POST", post, form(video, prompt, **more), _FORM)

    def named(**reference: Any) -> Callable[[int], Answer]:
        body = json.dumps({"prompt": "a cat", **reference})
        return lambda port: ask(port, "POST", "/v1/score-reference", body, {"Content-Type": "application/json"})

    return {
        "not a video": sent(b"MZ" + bytes(2000)),
        "no bytes": sent(b""),
        "cut off": sent(clip[: len(clip) // 2]),
        "damaged": sent(clip[:200] + random.Random(1).randbytes(len(clip) - 400) + clip[-200:]),
        "a picture of 60000 x 30000": sent(huge),
        "two frames an hour apart": sent(still),
        "a playlist of the server's files": sent(b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "blank prompt": sent(clip, "  \t "),
        "prompt of 100,000 characters": sent(clip, "a" * 100_000),
        "a filename that climbs": sent(b"not a video", filename="../../../../etc/cron.d/x"),
        "a field too few": lambda port: ask(
            port, "POST", post, f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
            f"--{_BOUNDARY}--\r\n".encode(), _FORM,
        ),
        "malformed multipart": lambda port: ask(port, "POST", post, b"".join(lines), _FORM),
        "a form that breaks off": lambda port: ask(port, "POST", post, form(clip, "a cat")[:-30], _FORM),
        "no boundary": lambda port: ask(port, "POST", post, b"x", {"Content-Type": "multipart/form-data"}),
        "another content type": lambda port: ask(port, "POST", post, b"{}", {"Content-Type": "application/json"}),
        "a length of 10 GB": lambda port: _raw(port, f"Content-Length: {10**10}\r\n"),
        "chunks without end": lambda port: ask(port, "POST", post, _endless(), _FORM),
        "a slow body": _drip,
        "another method": lambda port: ask(port, "GET", post),
        "another page": lambda port: ask(port, "GET", "/../../etc/passwd"),
        "a path": named(path="/etc/passwd"),
        "a path that climbs": named(path="data/../../../etc/passwd"),
        "file://": named(url="file:///etc/passwd"),
        "the cloud's metadata": named(url="http://169.254.169.254/latest/meta-data/"),
        "this server itself": named(url="http://127.0.0.1:22/"),
        "a user in the address": named(url="http://good.example@127.0.0.1/"),
        "malformed JSON": lambda port: ask(
            port, "POST", "/v1/score-reference", b"{", {"Content-Type": "application/json"}
        ),
    }  # fmt: skip


def attack(
    port: int, count: int, kinds: dict[str, Callable[[int], Answer]]
) -> tuple[dict[str, Counter[int]], list[str]]:
    """Send so many hostile requests, four at a time. Returns {kind: statuses}, and what was not refused properly."""
    found: dict[str, Counter[int]] = {kind: Counter() for kind in kinds}
    broken: list[str] = []
    todo = iter([list(kinds)[number % len(kinds)] for number in range(count)])
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                kind = next(todo, None)
            if kind is None:
                return
            for _ in range(50):
                status, said = _tried(kinds[kind], port)
                if status != 429:
                    break
                time.sleep(1)  # the queue is full of good ones; it comes again until it is looked at
            with lock:
                found[kind][status] += 1
                if not (400 <= status < 500 and said.get("error", {}).get("message")):
                    broken.append(f"{kind}: {status} {said}")

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, broken


def _tried(kind: Callable[[int], Answer], port: int) -> Answer:
    try:
        return kind(port)
    except (OSError, http.client.HTTPException, ValueError) as err:
        return 0, {"no answer": repr(err)}


def _endless() -> Iterator[bytes]:
    head, _, _ = form(b"", "a cat").rpartition(b"\r\n--")
    yield head
    for _ in range(4 * MOST_BYTES // 100_000):
        yield bytes(100_000)


def _raw(port: int, headers: str) -> Answer:
    """A request of which only the head is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {_FORM['Content-Type']}\r\n{headers}\r\n"
        connection.sendall(head.encode())
        return _read(connection)


def _drip(port: int) -> Answer:
    """A body that comes a byte at a time."""
    body = form(b"x" * 1000, "a cat")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {_FORM['Content-Type']}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        connection.settimeout(0.2)
        for at in range(200):
            try:
                connection.sendall(body[at : at + 1])
                early = connection.recv(1, socket.MSG_PEEK)
                if early:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        connection.settimeout(60)
        return _read(connection)


def _read(connection: socket.socket) -> Answer:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def _made_clip(*, frames: int, seconds_apart: float = 0.1, container: str = "mp4") -> bytes:
    from fractions import Fraction

    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("gif" if container == "gif" else "mpeg4", rate=10)
        stream.width = stream.height = 64
        if container == "gif":
            stream.pix_fmt = "rgb8"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 50 + number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(number * seconds_apart * 10), Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def _claiming(gif: bytes, width: int, height: int) -> bytes:
    """The same few bytes, on a canvas of gigabytes."""
    return gif[:6] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + gif[10:]


# The run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/lite"))
    parser.add_argument("--report", type=Path, default=Path("reports/lite"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--hostile", type=int, default=500)
    args = parser.parse_args()
    if not (args.checkpoint / "model.json").exists() or not args.data.exists():
        sys.exit(f"{args.checkpoint}, {args.data}: there is no model or no data set; `dvc repro` makes them")
    from qualivision.labels import labels_path, read_labels, videos_dir

    checkpoint, report, data = (path.absolute() for path in (args.checkpoint, args.report, args.data))
    params = Path("params.yaml").read_text()
    with tempfile.TemporaryDirectory(prefix="qualivision-serving-") as name:
        folder = Path(name)
        os.chdir(folder)
        Path("params.yaml").write_text(re.sub(r"body_seconds: \d+", f"body_seconds: {BODY_SECONDS}", params))
        environment.prepare()
        prepare(folder, data, CLIPS)
        table = read_labels(labels_path(Path("data"), "test"), require_mos=False)
        paths = [videos_dir(folder / "data", "test") / name for name in table["video_name"]]
        with mlflow_server(folder) as address:
            os.environ["MLFLOW_TRACKING_URI"] = address
            models, broken = approval(folder, checkpoint, report)
            return run(args, folder, models, paths, table["Prompt"].tolist(), broken)


def run(
    args: argparse.Namespace,
    folder: Path,
    models: dict[str, Path],
    paths: list[Path],
    prompts: list[str],
    broken: list[str],
) -> int:
    """What is measured; returns the exit code."""
    clips = [(path.read_bytes(), prompt) for path, prompt in zip(paths, prompts, strict=True)]
    wanted = wanted_scores(models, clips, folder)
    spawn = multiprocessing.get_context("spawn")
    out = spawn.Queue()
    direct = spawn.Process(
        target=call_directly, args=(next(iter(models.values())), paths, prompts, args.seconds / 2, out)
    )
    direct.start()
    alone = out.get()
    direct.join()
    print(f"direct    {alone:.2f} clips/s, one process that scores clip after clip")
    server = Server(folder / "log")
    try:
        load = Load(server.port, clips, wanted)
        rate = load.run(args.clients, args.seconds)
        broken += load.broken
        print(f"load      {rate:.2f} clips/s from {args.clients} clients over {args.seconds:g} s; {load.summary()}")
        print(f"          {rate / alone:.2f} of direct")
        if rate < WANTED_SHARE * alone:
            broken.append(f"throughput is {rate / alone:.2f} of direct, below {WANTED_SHARE}")
        broken += under_attack(args, server, clips, wanted)
    finally:
        code = server.stop()
    if code:
        broken.append(f"the server ended with exit code {code}")
    for line in broken[:20]:
        print(f"BROKEN    {line}")
    print(f"{len(broken)} promises broken")
    return int(bool(broken))


def under_attack(
    args: argparse.Namespace, server: Server, clips: list[Clip], wanted: dict[str, list[dict[str, float]]]
) -> list[str]:
    """Load, hostile requests and another champion, all at once. Returns what was broken."""
    kinds = hostile_kinds(clips[0][0])
    refused: list[Any] = []
    load = Load(server.port, clips, wanted)

    def meanwhile() -> None:
        attackers = threading.Thread(target=lambda: refused.extend(attack(server.port, args.hostile, kinds)))
        attackers.start()
        time.sleep(args.seconds / 2)
        promote(2)
        attackers.join()

    rate = load.run(args.clients, args.seconds, meanwhile)
    found, broken = refused
    print(f"hostile   {rate:.2f} clips/s beside {args.hostile} hostile requests; {load.summary()}")
    for kind, statuses in found.items():
        print(f"          {kind:<34} {', '.join(f'{count} x {code}' for code, count in sorted(statuses.items()))}")
    print(f"champion  {', '.join(f'{count} by {model}' for model, count in sorted(load.models.items()))}; none lost")
    if len(load.models) != 2:
        broken.append(f"the champion did not change under load: {dict(load.models)}")
    after = Load(server.port, clips, wanted)
    after.run(2, 3)
    lost = [f"after the hostile requests: {line}" for line in after.broken]
    return broken + load.broken + lost + ([] if after.codes["200"] else ["no clip was scored afterwards"])


if __name__ == "__main__":
    sys.exit(main())
