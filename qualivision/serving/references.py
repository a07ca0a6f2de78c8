"""Videos that a client names and does not send: files of this machine and addresses, as far as the settings allow it.

Owns the decision whether one is allowed, and brings it to a file of ours: what is scored is what was checked. Nothing
is allowed unless a setting says so.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision.serving.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    import httpx

_AT_ONCE = 1 << 20


def copy_file(path: str, into: IO[bytes], *, folders: Sequence[Path], most_bytes: int) -> None:
    """Copy a file that lies under an allowed folder, also after every link on the way is followed.

    Raises:
        Refusal: 403 it is not allowed, 404 there is none (where it would be allowed), 413, or 422 it is no file.
    """
    where = _allowed(path, folders)
    # A link in place of a file that was checked, or a pipe that nobody writes to, shall not fool or hang us.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(where, flags)
    except FileNotFoundError:
        raise Refusal(404, "no_such_video", "there is no such file; check the path") from None
    except OSError:
        raise Refusal(422, "video_unusable", "the file can't be opened; name one that the server may read") from None
    try:
        found = os.fstat(handle)
        try:
            same = os.path.samestat(found, os.stat(_allowed(path, folders)))
        except OSError:
            same = False
        if not same:  # somebody moved a folder or a link while we looked
            raise _forbidden_path()
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(422, "video_unusable", "the path is no file; name a video file")
        with os.fdopen(handle, "rb", buffering=0, closefd=False) as file:
            _copy(file, into, most_bytes)
    finally:
        os.close(handle)


def _copy(file: IO[bytes], into: IO[bytes], most_bytes: int) -> None:
    got = 0
    while chunk := file.read(_AT_ONCE):
        got += len(chunk)
        if got > most_bytes:
            raise _too_large(most_bytes)
        into.write(chunk)
    into.flush()


def _allowed(path: str, folders: Sequence[Path]) -> Path:
    """Where a path leads. Of what lies outside, nobody learns whether it is there."""
    try:
        if os.path.isabs(path):
            where = Path(path).resolve()
            if any(where.is_relative_to(folder.resolve()) for folder in folders):
                return where
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL in it, links in a circle
        pass
    raise _forbidden_path()


def _forbidden_path() -> Refusal:
    return Refusal(
        403,
        "path_not_allowed",
        "the path is not absolute, or under none of the folders that serve.allow_folders names; send the file itself "
        "to /v1/score",
    )


async def download(url: str, into: IO[bytes], *, origins: Sequence[str], most_bytes: int, seconds: float) -> None:
    """Load a video from an allowed origin. No redirect is followed, and no proxy or credential of ours is used.

    Raises:
        Refusal: 403 it is not allowed; 413; 422 it can't be loaded.
    """
    import httpx

    address = _allowed_address(url, origins)
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=seconds) as client,
            client.stream("GET", address, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                moved = "; redirects are not followed, name the address it leads to" if answer.is_redirect else ""
                raise Refusal(422, "url_unusable", f"the address answers {answer.status_code}{moved}")
            length = answer.headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > most_bytes:
                raise _too_large(most_bytes)
            got = 0
            async for chunk in answer.aiter_raw():  # as it comes: what is small and packed could be large
                got += len(chunk)
                if got > most_bytes:
                    raise _too_large(most_bytes)
                into.write(chunk)
    except (TimeoutError, httpx.TimeoutException):
        raise Refusal(
            422, "url_unusable", f"the address takes longer than {seconds:g} s; send the file itself"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL):
        raise Refusal(422, "url_unusable", "the address can't be loaded from; send the file itself") from None
    into.flush()


def _allowed_address(url: str, origins: Sequence[str]) -> httpx.URL:
    """The address as it is asked for: the same object is checked and used, so that no two readings differ."""
    import httpx

    try:
        address = httpx.URL(url)
        # What is asked for by host, and not by what the text begins with: http://allowed.example@elsewhere does.
        host = f"[{address.host}]" if ":" in address.host else address.raw_host.decode()
        port = f":{address.port}" if address.port is not None else ""
        allowed = f"{address.scheme}://{host}{port}" in {_without_usual_port(origin) for origin in origins}
        allowed = allowed and address.scheme in ("http", "https") and not address.userinfo
    except (httpx.InvalidURL, ValueError, TypeError):
        allowed = False
    if not allowed:
        raise Refusal(
            403,
            "url_not_allowed",
            "the address has none of the origins that serve.allow_urls names; send the file itself to /v1/score",
        )
    return address


def _without_usual_port(origin: str) -> str:
    usual = ":443" if origin.startswith("https:") else ":80"
    return origin.removesuffix(usual)


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(413, "too_large", f"the video has more than {most_bytes} bytes; use a smaller one")
