"""The server as a process: from a model and settings to a socket, and down again without losing what was admitted.

Owns signals, logging and the order of things. An entry point: nothing else of ours imports it.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from qualivision.errors import QualiVisionError
from qualivision.serving.app import create_app
from qualivision.serving.champion import Follower, UnfitModelError, alias_of, load
from qualivision.serving.engine import Engine
from qualivision.serving.observing import REQUESTS, JsonLines, Metrics
from qualivision.serving.protocol import MOST_HEADER_BYTES, guarded_protocol

if TYPE_CHECKING:
    from types import FrameType

    from qualivision.settings import DecodeSettings, ServeSettings

_KEEP_ALIVE_SECONDS = 15


class AddressError(QualiVisionError, OSError):
    """An address that can't be listened on."""


def serve(host: str, port: int, model: str | None, settings: ServeSettings, decode: DecodeSettings) -> None:
    """Serve until a SIGTERM or SIGINT; returns when what was admitted by then is answered.

    Args:
        host: the address to listen on.
        port: 0 for one that is free.
        model: as `Scorer` takes it; an alias is followed.
        settings: the `serve` section.
        decode: the `decode` section.
    Raises:
        AddressError: the address is taken, or none of this machine.
        ModelNotFoundError, CheckpointError: there is nothing to score with.
    """
    _log_as_json()
    listener = _listen(host, port)  # first: what is taken shall not be found out after a minute of loading
    metrics = Metrics()
    try:
        scorer = load(model)
    except UnfitModelError as err:
        raise QualiVisionError(f"{err}; serve another model") from err
    engine = Engine(scorer, settings, decode, metrics)
    alias = alias_of(model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine.warm_up(_write_clip(Path(folder) / "clip"))
        follower = None
        if alias is not None:
            follower = Follower(alias, scorer.name, engine.swap, metrics, poll_seconds=settings.poll_seconds)
            follower.start()
        app = create_app(engine, settings, metrics, follows=alias)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=guarded_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.stop_seconds) + 1,
        )
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        _Server(config, engine, f"serve: {where} scores with {scorer.name}; {where}/docs says how").run([listener])
        if follower is not None:
            follower.stop(settings.stop_seconds)
    finally:
        listener.close()
        engine.close()


class _Server(uvicorn.Server):
    """uvicorn, that tells the engine of a stop at once, and whose stop is no failure."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: str) -> None:
        super().__init__(config)
        self._engine = engine
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        sys.stderr.write(f"{self._ready}\n")
        sys.stderr.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop. Not uvicorn's own, which would raise it again at the end and exit with its number."""
        self._engine.stop_admitting()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as err:
        reason = getattr(err, "strerror", None) or err
        raise AddressError(
            f"{host}:{port}: can't be listened on: {reason}; choose others by --host and --port"
        ) from err
    return listener


def _write_clip(path: Path) -> Path:
    """A clip of four grey frames, for a worker to load its decoder and resizer by."""
    import av
    import numpy as np

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 48
        for _ in range(4):
            picture = np.full((48, 48, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("qualivision.serving", REQUESTS.name):
        logging.getLogger(name).setLevel(logging.INFO)
