"""Around every request: its id, its line in the log, its place in the metrics, and an answer to what nobody foresaw.

Also what becomes of a body that nobody read: a client that is still sending shall see the answer, so its connection is
not cut at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from qualivision.serving.observing import REQUESTS
from qualivision.serving.refusals import DEFECT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qualivision.serving.observing import Metrics

log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WENT_AWAY = 499
"""In log and metrics, of a client that did not wait for its answer."""


class Observed:
    """An ASGI application around ours.

    Args:
        app: what answers.
        metrics: what is counted.
        linger_seconds: that a client may go on sending what is refused already, before its connection is closed.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, linger_seconds: float) -> None:
        self._app = app
        self._metrics = metrics
        self._linger_seconds = linger_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Exchange(scope, receive, send, self._linger_seconds)
        try:
            await self._app(scope, seen.receive, seen.send)
        except ClientDisconnect:
            seen.status = _WENT_AWAY
        except Exception:
            log.exception("request %s: a defect", seen.id)
            if seen.status is not None:
                raise
            seen.state["reason"] = "defect"
            await DEFECT.answer()(scope, seen.receive, seen.send)
        except asyncio.CancelledError:
            seen.state["reason"] = "cut off by the shutdown"
            raise
        finally:
            self._record(seen)

    def _record(self, seen: _Exchange) -> None:
        seconds = time.monotonic() - seen.start
        route = getattr(seen.scope.get("route"), "path", None) or "other"  # not the path: clients make up many
        status = seen.status or _WENT_AWAY
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {
            "request_id": seen.id,
            "method": seen.scope["method"][:16],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            "bytes_in": seen.bytes_in,
            "model": seen.state.get("model"),
            "reason": seen.state.get("reason"),
        }
        REQUESTS.info("%s %s", route, status, extra={"fields": fields})


class _Exchange:
    """One request and its answer, as they pass by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, linger_seconds: float) -> None:
        self.scope = scope
        self.start = time.monotonic()
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex
        self.state = scope.setdefault("state", {})
        self.state["request_id"] = self.id
        self.status: int | None = None
        self.bytes_in = 0
        self._receive = receive
        self._send = send
        self._linger_seconds = linger_seconds
        self._all_read = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"

    async def receive(self) -> Message:
        """A part of the request."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
            self._all_read = self._all_read or not message.get("more_body", False)
        else:
            self._all_read = True
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            if not self._all_read:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self._all_read:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Take what is still being sent, and throw it away: cut off in the middle, a client may miss our answer."""
        try:
            async with asyncio.timeout(self._linger_seconds):
                while not self._all_read:
                    await self.receive()
        except TimeoutError:
            pass
