"""HTTP connections that can't be held for nothing: there is a limit of them, and headers and answers have their time.

Owns what uvicorn does not: a client that sends its headers byte by byte, or never takes its answer, would hold a
connection for ever. (A body has its time in `bodies.py`.)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from qualivision.serving.refusals import Refusal

if TYPE_CHECKING:
    from qualivision.settings import ServeSettings

MOST_HEADER_BYTES = 32 * 1024


def guarded_protocol(settings: ServeSettings) -> type[H11Protocol]:
    """uvicorn's protocol with the limits of the settings."""

    class Guarded(GuardedProtocol):
        header_seconds = settings.header_seconds
        answer_seconds = settings.body_seconds
        most_connections = settings.connections

    return Guarded


class GuardedProtocol(H11Protocol):
    """One connection."""

    header_seconds: float
    answer_seconds: float
    most_connections: int
    _timer: asyncio.TimerHandle | None = None
    _unsent: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its headers have to follow."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that we are told of every byte that is not taken
        if len(self.connections) > self.most_connections:
            self._refuse(
                Refusal(503, "too_many_connections", "too many connections are open; try again", {"Retry-After": "5"}),
                linger_seconds=0.0,  # or they would be open all the same
            )
            return
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes came: the end of some headers, the beginning of the next, or of a body."""
        if self.transport.is_closing() or self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif not self.transport.is_closing():
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_timer()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take its answer; it has some time for it."""
        super().pause_writing()
        if self._unsent is None:
            self._unsent = self.loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It took all there was."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in our form."""
        self._refuse(Refusal(400, "malformed", "the request is no HTTP/1.1, or its headers are too long; see /docs"))

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        message = f"the headers did not arrive within {self.header_seconds:g} s; send them at once"
        self._refuse(Refusal(408, "too_slow", message))

    def _refuse(self, refusal: Refusal, *, linger_seconds: float = 1.0) -> None:
        """Answer without any application, and close; not at once, for a client that is cut off while it sends may miss
        the answer.
        """
        self._stop_timer()
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        body = refusal.body()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **refusal.headers,
        }
        events: list[Any] = [
            h11.Response(
                status_code=refusal.status, headers=list(headers.items()), reason=STATUS_PHRASES[refusal.status]
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        try:
            for event in events:
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:
            pass  # an answer is under way already
        if linger_seconds:
            self.transport.write_eof()
            self.loop.call_later(linger_seconds, self.transport.close)
        else:
            self.transport.close()
