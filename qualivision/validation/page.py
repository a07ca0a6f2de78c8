"""The report as one static page that fetches nothing: no script, no font, no style sheet.

Owns how it looks. It says what is wrong; the Data Docs that it links to (`docs.py`) say all that was expected.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from qualivision.validation.report import DATA_DOCS, counted, shown

if TYPE_CHECKING:
    from qualivision.validation.report import Finding, ValidationReport

# A browser chokes on a hundred thousand rows; validation.json holds them all, in full.
ROWS_SHOWN = 200
VALUE_CHARACTERS = 300

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5d6878;
  --line: #e2e6ec; --error: #b3261e; --error-bg: #fdeceb; --warning: #8a5a00; --warning-bg: #fff4dc;
  --info: #23538f; --info-bg: #e6eefa; --link: #1a56b0;
  --fine: #1a6b3c; --fine-bg: #e5f5eb; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --card: #1c222b; --ink: #e6eaf0;
  --soft: #9aa6b6; --line: #303947; --error: #ff9d94; --error-bg: #3d1f1d; --warning: #f2c265;
  --warning-bg: #38301a; --info: #9cc3ff; --info-bg: #1d2b40; --link: #8ab8ff; --fine: #7fd6a3; --fine-bg: #1a3325; } }
* { box-sizing: border-box; }
a { color: var(--link); }
body { margin: 0; padding: 2.5rem 1.25rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; }
h1 { margin: 0 0 .75rem; font-size: 1.6rem; letter-spacing: -.01em; }
h2 { margin: 0; font: 600 1rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.badge { display: inline-block; padding: .15rem .65rem; border-radius: 1rem; font-size: .85rem;
  font-weight: 600; }
.error { color: var(--error); background: var(--error-bg); }
.warning { color: var(--warning); background: var(--warning-bg); }
.info { color: var(--info); background: var(--info-bg); }
.fine { color: var(--fine); background: var(--fine-bg); }
section { margin-top: 1.5rem; border: 1px solid var(--line); border-radius: .6rem; background: var(--card);
  overflow-x: auto; }
header.check { padding: .8rem 1rem; border-bottom: 1px solid var(--line); }
header.check h2 { display: inline-block; margin-right: .6rem; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .55rem 1rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
tr:first-child th { border-top: 0; }
th { color: var(--soft); font-size: .8rem; font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.value { white-space: pre-wrap; }
section.counts { max-width: 26rem; }
table.findings { min-width: 44rem; table-layout: fixed; }
.findings th.file { width: 27%; }
.findings th.number { width: 5rem; }
.findings th.value { width: 26%; }
td.file, td.value { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .85rem; }
p.more { margin: 0; padding: .6rem 1rem; border-top: 1px solid var(--line); color: var(--soft); }
""".strip()


_DOCS_LINK = (
    f'<p><a href="{DATA_DOCS}">Every expectation, and what was observed</a> (Great Expectations\' Data Docs)</p>'
)


def as_html(report: ValidationReport, *, docs: bool = False) -> str:
    """The page, with a link to the Data Docs if there are any. Everything that comes from the data is escaped."""
    verdict = "fit to learn from" if report.ok else "not fit to learn from"
    sections = "\n".join(_section(severity, check, found) for severity, check, found in report.by_check())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>QualiVision: data set {verdict}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<main>
<h1>The data set is {verdict}</h1>
{_badges(report)}
{_DOCS_LINK if docs else ""}
{_counts(report)}
{sections}
</main>
</body>
</html>
"""


def _badges(report: ValidationReport) -> str:
    errors = f'<span class="badge {"fine" if report.ok else "error"}">{counted(len(report.errors), "error")}</span>'
    kind = "warning" if report.warnings else "fine"
    warnings = f'<span class="badge {kind}">{counted(len(report.warnings), "warning")}</span>'
    infos = f' <span class="badge info">{counted(len(report.infos), "info")}</span>' if report.infos else ""
    return f"<p>{errors} {warnings}{infos}</p>"


def _counts(report: ValidationReport) -> str:
    rows = "\n".join(
        f'<tr><td>{escape(split)}</td><td class="number">{count["rows"]}</td>'
        f'<td class="number">{count["videos"]}</td></tr>'
        for split, count in report.counts.items()
    )
    head = '<tr><th>Split</th><th class="number">Rows</th><th class="number">Videos</th></tr>'
    return f'<section class="counts">\n<table>\n{head}\n{rows}\n</table>\n</section>'


def _section(severity: str, check: str, found: list[Finding]) -> str:
    rows = "\n".join(_row(one) for one in found[:ROWS_SHOWN])
    more = len(found) - ROWS_SHOWN
    rest = f'\n<p class="more">And {more} more like it, in validation.json.</p>' if more > 0 else ""
    badge = f'<span class="badge {severity}">{counted(len(found), severity)}</span>'
    said = "What it means" if severity == "info" else "What is wrong"
    head = f'<tr><th class="file">File</th><th class="number">Line</th><th class="value">Value</th><th>{said}</th></tr>'
    return (
        f'<section>\n<header class="check"><h2>{escape(check)}</h2>{badge}</header>\n'
        f'<table class="findings">\n{head}\n{rows}\n</table>{rest}\n</section>'
    )


def _row(one: Finding) -> str:
    row = "" if one.row is None else str(one.row)
    return (
        f'<tr><td class="file">{escape(one.file)}</td><td class="number">{row}</td>'
        f'<td class="value">{escape(shown(one.value, VALUE_CHARACTERS))}</td><td>{escape(one.message)}</td></tr>'
    )
