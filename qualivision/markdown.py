"""Tables and pictures in Markdown, as MLflow's and Prefect's pages show it."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """A table; what would break out of a cell is escaped."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])


def picture(png: bytes, alt: str) -> str:
    """A picture that lies in the text itself, and so needs no server."""
    return f"![{alt}](data:image/png;base64,{b64encode(png).decode()})"
