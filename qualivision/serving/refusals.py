"""What the server says when it does not score: a status, a code for programs, and a sentence with the way out.

Owns the form of every error that leaves the server. What it says never names a file of the server, nor a line of code.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping


class Refusal(Exception):
    """A request that is answered with an error. `str()` is the sentence."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def answer(self) -> Response:
        """As it goes to the client."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")

    def body(self) -> bytes:
        """The JSON object."""
        return json.dumps({"error": {"code": self.code, "message": str(self)}}, ensure_ascii=False).encode()


DEFECT = Refusal(500, "defect", "something is wrong with the server, not with the request; its log has the rest")
