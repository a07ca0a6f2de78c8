"""What goes wrong with text on its way into a table: encodings, control characters, normal forms.

Owns how such text is told from good text. Knows no table and no finding. Pure functions and patterns; the patterns
mean the same to Python and to RE2, which pandas uses where pyarrow is installed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

CONTROL: Final = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
"""Control characters, but for tab and the ends of lines."""
REPLACEMENT: Final = "\ufffd"
"""What a decoder puts in place of bytes that it could not read."""
BLANK_AT_AN_END: Final = "^[ \\t\\r\\n\u00a0\u2028\u3000\ufeff]|[ \\t\\r\\n\u00a0\u2028\u3000\ufeff]$"


def _byte_of() -> dict[str, int]:
    """The byte behind each character of a text that was read as Latin-1, or as Windows-1252, which differs in 27."""
    known = {chr(byte): byte for byte in range(256)}
    for byte in range(0x80, 0xA0):
        known[bytes([byte]).decode("cp1252", "ignore") or chr(byte)] = byte
    return known


_BYTES: Final = _byte_of()
_RUNS: Final = re.compile(f"[{re.escape(''.join(_BYTES))}]+")


def meant(text: str) -> str | None:
    """What a text says if it is UTF-8 that was read as Latin-1 or Windows-1252 ("CafÃ©" is meant as "Café").

    Returns:
        The text as it was meant; None where it is no such text. Text in Latin-1 letters is hardly ever valid UTF-8
        by chance: an accented letter would have to be followed by just the right signs.
    """
    found = _RUNS.sub(lambda run: _read_again(run.group()), text)
    return found if found != text else None


def _read_again(run: str) -> str:
    try:
        return bytes(_BYTES[character] for character in run).decode("utf-8")
    except UnicodeDecodeError:
        return run


def composed(text: str) -> str | None:
    """The text in Unicode's normal form C, which most programs write; None where it is in that form."""
    found = unicodedata.normalize("NFC", text)
    return found if found != text else None
