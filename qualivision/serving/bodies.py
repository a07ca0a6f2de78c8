"""The body of a request, as it arrives: not too large, not too slow, and never all of it in memory.

Owns the limits of size and time, and the reading of a multipart form whose video goes straight to a file. What a client
calls its file is not looked at.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from qualivision.serving.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import IO

    from starlette.requests import Request

_FORM_OVERHEAD = 64 * 1024
"""What boundaries and headers of a form may take beside its video and its prompt."""

_BYTES_PER_CHARACTER = 4
_MOST_HEADERS_OF_A_PART = 8
_LONGEST_HEADER_OF_A_PART = 4096


class Body:
    """A body within its limits.

    Args:
        request: whose headers say what is to come.
        media_type: what it has to be.
        most_bytes: of all of it.
        seconds: from now until all of it is there.
    Raises:
        Refusal: 415 of another type, 411 without a length, 413 with too large a length; before any of it is read.
    """

    def __init__(self, request: Request, media_type: str, *, most_bytes: int, seconds: float) -> None:
        sent, options = parse_options_header(request.headers.get("content-type"))
        if sent.decode("latin-1").lower() != media_type:
            raise Refusal(415, "wrong_content_type", f"send the request as {media_type}; see /docs")
        self.options = options
        self._request = request
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._until = asyncio.get_running_loop().time() + seconds
        length = request.headers.get("content-length")
        if length is None and "transfer-encoding" not in request.headers:
            raise Refusal(411, "no_length", "send a body, with Content-Length or in chunks; see /docs")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise Refusal(400, "malformed", "Content-Length is no number")
        if length is not None and int(length) > most_bytes:
            raise self._too_large()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What has arrived, piece by piece. Raises a Refusal when it is too much or takes too long."""
        got, more = 0, True
        while more:
            try:
                async with asyncio.timeout_at(self._until):
                    message = await self._request.receive()
            except TimeoutError:
                raise Refusal(
                    408, "too_slow", f"the request did not arrive within {self._seconds:g} s; send a smaller file"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            chunk = message.get("body", b"")
            got += len(chunk)
            if got > self._most_bytes:
                raise self._too_large()
            if chunk:
                yield chunk

    async def whole(self) -> bytes:
        """All of it; for small ones."""
        return b"".join([chunk async for chunk in self.chunks()])

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"the request has more than {self._most_bytes} bytes; send a smaller file")


class Form:
    """A multipart form with a `video`, which goes to a file, and a `prompt`.

    Args:
        file: where the video goes.
        most_bytes: of the video.
        most_characters: of the prompt.
    """

    def __init__(self, file: IO[bytes], *, most_bytes: int, most_characters: int) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._most_characters = most_characters
        self._got: dict[str, int] = {}
        self._prompt = bytearray()
        self._header, self._value = bytearray(), bytearray()
        self._disposition: bytes | None = None
        self._name = ""
        self._complete = False

    @property
    def limit(self) -> int:
        """How many bytes a body may have that holds such a form."""
        return self._most_bytes + _BYTES_PER_CHARACTER * self._most_characters + _FORM_OVERHEAD

    async def read(self, body: Body) -> str:
        """Read it; the video is in its file then. Returns the prompt.

        Raises:
            Refusal: 400 it is no such form, 413 the video is too large, 422 a field is missing, double or unknown.
        """
        boundary = body.options.get(b"boundary")
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._take,
                    "on_end": self._end,
                },
                max_header_count=_MOST_HEADERS_OF_A_PART,
                max_header_size=_LONGEST_HEADER_OF_A_PART,
            )
            async for chunk in body.chunks():
                parser.write(chunk)
        except FormParserError:
            raise _malformed("its parts are not as its boundary says") from None
        if not self._complete:
            raise _malformed("it ends before its last boundary")
        for name in ("video", "prompt"):
            if name not in self._got:
                raise Refusal(422, "missing_field", f"the form has no field {name!r}; it needs 'video' and 'prompt'")
        self._file.flush()
        return check_prompt(bytes(self._prompt), self._most_characters)

    def _begin(self) -> None:
        self._disposition = None

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name not in ("video", "prompt"):
            raise Refusal(
                422, "unknown_field", f"the form has a field {self._name[:40]!r}; it needs 'video' and 'prompt' alone"
            )
        if self._name in self._got:
            raise Refusal(422, "double_field", f"the form has two fields {self._name!r}; send one video a request")
        self._got[self._name] = 0

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._got[self._name] += end - start
        if self._name == "video":
            if self._got["video"] > self._most_bytes:
                raise Refusal(413, "too_large", f"the video has more than {self._most_bytes} bytes; send a smaller one")
            self._file.write(memoryview(data)[start:end])
        else:
            if self._got["prompt"] > _BYTES_PER_CHARACTER * self._most_characters:
                raise _too_long(self._most_characters)
            self._prompt += data[start:end]

    def _end(self) -> None:
        self._complete = True


def check_prompt(prompt: bytes | str, most_characters: int) -> str:
    """A prompt that a video can be scored against. Raises a Refusal (422) when it is none."""
    try:
        text = prompt.decode() if isinstance(prompt, bytes) else prompt
        text.encode()  # JSON can say half a character
    except UnicodeError:
        raise Refusal(422, "prompt_no_text", "the prompt is not UTF-8; send it as UTF-8") from None
    if not text.strip():
        raise Refusal(422, "prompt_blank", "the prompt is blank; a score is always against a prompt")
    if len(text) > most_characters:
        raise _too_long(most_characters)
    return text


def _too_long(most_characters: int) -> Refusal:
    return Refusal(422, "prompt_too_long", f"the prompt has more than {most_characters} characters; shorten it")


def _malformed(why: str) -> Refusal:
    return Refusal(400, "malformed", f"the request is no multipart form: {why}; see /docs")
