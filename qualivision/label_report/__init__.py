"""What a label table says before any video is looked at: distributions, ties, what prompt and generator explain.

    figures.py   every number, from the table alone
    page.py      the report as text and as one page
    pictures.py  its pictures

Owns the report of a label table. Whether the table is fit to learn from is `validation`'s business.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qualivision.cache import write_atomically
from qualivision.label_report.figures import label_figures
from qualivision.label_report.page import as_html, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from qualivision.progress import Advance

__all__ = ["as_text", "label_figures", "report_labels"]


def report_labels(table: Path, out: Path, *, encoder: str, advance: Advance) -> dict[str, Any]:
    """Write `labels.json` and `labels.html` about a label table.

    Args:
        table: a label table with all five MOS columns.
        out: the folder to write to.
        encoder: the sentence encoder of the no-video baseline (see `PromptEncoder`).
        advance: told of the progress of the baseline, the slow part.
    Returns:
        The figures, as in `labels.json`.
    Raises:
        LabelError: the table can't be read, or holds too little to say anything of.
        PromptError: the sentence encoder can't be loaded.
    """
    from qualivision.labels import read_labels
    from qualivision.prompts import PromptEncoder

    def encode(prompts: Sequence[str]) -> NDArray[np.float32]:
        return PromptEncoder(encoder).encode(prompts)

    figures = label_figures(read_labels(table), encode=encode, advance=advance, name=table.name)
    write_atomically(out / "labels.json", (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomically(out / "labels.html", as_html(figures).encode())
    return figures
