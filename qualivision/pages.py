"""One HTML page that fetches nothing and runs nothing: sections of tables and pictures, all text escaped.

Owns how such a page looks. What stands on it is its callers'.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5d6878; --line: #e2e6ec; }
* { box-sizing: border-box; }
body { margin: 0; padding: 2.5rem 1.25rem; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; }
h1 { margin: 0 0 .4rem; font-size: 1.6rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 .3rem; font-size: 1.1rem; }
p { margin: .2rem 0 .8rem; color: var(--soft); max-width: 60rem; }
section { margin-top: 1.25rem; padding: 1.1rem 1.25rem; border: 1px solid var(--line); border-radius: .6rem;
  background: #fff; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .7rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
tr:first-child th { border-top: 0; color: var(--soft); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
img { display: block; width: 100%; min-width: 40rem; height: auto; }
""".strip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its first column is text, the others are numbers."""
    cells = "\n".join(
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in [("th", head), *(("td", row) for row in rows)]
    )
    return f"<table>\n{cells}\n</table>\n"


def picture(png: bytes, alt: str) -> str:
    """A picture, with what it shows in words."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{b64encode(png).decode()}">\n'


def section(title: str, note: str, content: str) -> str:
    """A titled part of a page; `content` is what `table` and `picture` gave."""
    said = f"<p>{escape(note)}</p>\n" if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{said}{content}</section>"


def page(title: str, facts: Iterable[str], sections: Iterable[str]) -> str:
    """The page: its title, some lines below it, and the sections."""
    lines = "".join(f"<p>{escape(fact)}</p>\n" for fact in facts)
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{lines}{body}
</main>
</body>
</html>
"""
