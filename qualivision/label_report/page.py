"""The label report as text, and as one page that fetches nothing. Owns how it looks, computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qualivision import pages
from qualivision.label_report import pictures
from qualivision.label_report.figures import BASELINES, LEAKS
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Rows = Sequence[Sequence[str]]

_NOTES = {
    "Without any video": "Five folds that share no prompt; the mean of SROCC and PLCC, averaged over the folds. A "
    "model is worth what it adds to the best of these.",
    "What a random row split leaks": "The mean of SROCC and PLCC of a prediction from the labels of a clip's siblings, "
    "which a random row split leaves on the other side. Split by prompt.",
    "Variance explained": "Adjusted R squared: the share of the variance between clips that the factor explains, "
    "less what so many groups would explain by chance.",
    "SROCC between dimensions": "How alike the dimensions rank the clips.",
}


def as_text(figures: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [_title(figures), *_facts(figures)]
    for title, head, rows in _tables(figures):
        lines += ["", title]
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            lines.append(
                "  "
                + row[0].ljust(widths[0])
                + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
            )
    return "\n".join(lines)


def as_html(figures: dict[str, Any]) -> str:
    """The page. Everything that comes from the table is escaped."""
    drawn = {
        "Distribution": (pictures.distributions, "a histogram of the MOS of each dimension"),
        "Without any video": (pictures.without_video, "what is predicted without video, by leak and by baselines"),
    }
    if figures["by_generator"]:
        drawn["Mean by generator"] = (pictures.generators, "the mean MOS of each generator in each dimension")
    sections = []
    for title, head, rows in _tables(figures):
        picture = pages.picture(drawn[title][0](figures), drawn[title][1]) if title in drawn else ""
        sections.append(pages.section(title, _NOTES.get(title, ""), picture + pages.table(head, rows)))
    return pages.page(_title(figures), _facts(figures), sections)


def _title(figures: dict[str, Any]) -> str:
    return f"{figures['table']}: {figures['rows']} rated clips of {figures['prompts']} prompts"


def _facts(figures: dict[str, Any]) -> Iterator[str]:
    if figures["left_out"]:
        yield f"{figures['left_out']} more rows have a MOS missing, and are left out."
    if figures["generators"]:
        yield f"{len(figures['generators'])} generators: {', '.join(figures['generators'][:20])}."
    else:
        yield "The table names no generators (a column `generator`, or clip names such as A_0001.mp4)."
    steps = figures["granularity"]
    yield (
        f"Every MOS is a multiple of 1/{steps}: a mean of {steps} raters. Expect ties in ranks."
        if steps and steps > 1
        else "Every MOS is a whole number."
        if steps
        else "MOS are no multiples of 1/2 to 1/10."
    )
    apart = figures["overall_against_mean_of_others"]
    yield f"Overall differs from the mean of the other four by {apart:.2f} on average."
    rows = figures["no_video"]["svr_rows"]
    if 0 < rows < figures["rows"] * 0.75:
        yield f"The SVR learned from {rows} rows of each fold."


def _tables(figures: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows) of each table."""
    columns = ["mean", "sd", "quartiles", "distinct values", "tied pairs"]
    yield (
        "Distribution",
        ["", *columns],
        [
            [
                name,
                f"{found['mean']:.2f}",
                f"{found['sd']:.2f}",
                " ".join(f"{value:.2f}" for value in found["quartiles"]),
                str(found["distinct"]),
                f"{found['tied_pairs']:.1%}",
            ]
            for name, found in figures["dimensions"].items()
        ],
    )
    head = ["", *DIMENSIONS]
    yield (
        "SROCC between dimensions",
        head,
        [_row(d, r) for d, r in zip(DIMENSIONS, figures["correlations"], strict=True)],
    )
    if figures["by_generator"]:
        means = [_row(f"{one['generator']} ({one['rows']} clips)", one["mean"]) for one in figures["by_generator"]]
        yield "Mean by generator", head, means
    yield "Variance explained", head, [_row(name, values) for name, values in figures["variance"].items()]
    leaks = [_row(LEAKS[name], values) for name, values in figures["leaks"].items()]
    yield "What a random row split leaks", head, leaks
    baselines = [_row(BASELINES[name], values) for name, values in figures["no_video"]["scores"].items()]
    yield "Without any video", head, baselines


def _row(name: str, values: Sequence[float | None]) -> list[str]:
    return [name, *("none" if value is None else f"{value:.3f}" for value in values)]
