"""What no single table shows: prompts in two splits, how large the splits are, and whether they are alike.

Owns the rules across splits. They are expectations about three made tables: a row per prompt, a row per split, a row
per dimension and pair of splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.labels import DIMENSIONS, SPLITS, prompt_key
from qualivision.validation.report import Finding, counted
from qualivision.validation.rules import mos_of
from qualivision.validation.suites import about

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qualivision.settings import ValidateSettings
    from qualivision.validation.suites import Suites
    from qualivision.validation.tables import Table

DRIFT_P: Final = 0.001
DRIFT_STATISTIC: Final = 0.1
"""A difference is drift when it is hardly chance (p, corrected for the number of tests) and large enough to matter."""

_LINES_NAMED = 10
_COUNTED: Final = "statistic, where it is not by chance"


@dataclass(frozen=True)
class Difference:
    """One dimension in two splits: the two-sample Kolmogorov-Smirnov test on the means of the prompts."""

    dimension: str
    first: str
    second: str
    prompts: tuple[int, int]
    statistic: float
    """The largest distance between the two distribution functions, 0 to 1."""
    p: float
    """Corrected by Bonferroni: times the number of tests, at most 1."""

    @property
    def significant(self) -> bool:
        """Whether chance hardly explains it."""
        return self.p < DRIFT_P


def check_split(suites: Suites, tables: list[Table], bounds: ValidateSettings) -> tuple[list[Finding], dict[str, Any]]:
    """Hold the splits against each other. Returns what was found, and what there is to count."""
    found = [table for table in tables if table.rows]
    if not found:
        return [], {}
    findings = _check_leaks(suites, found)
    sizes, facts = _check_sizes(suites, found, bounds)
    findings += sizes
    names = ["split-prompts", "split-sizes"]
    tested = differences(found)
    if tested:
        findings += _check_drift(suites, tested, {table.split: table.file for table in found})
        names.append("split-drift")
    drift = [
        {
            "dimension": one.dimension,
            "splits": [one.first, one.second],
            "prompts": list(one.prompts),
            "statistic": round(one.statistic, 4),
            "p_corrected": float(f"{one.p:.3g}"),
        }
        for one in tested
    ]
    return findings, {"sizes": facts, "drift": drift, "expectations": {name: suites.held(name) for name in names}}


def differences(tables: list[Table]) -> list[Difference]:
    """Compare the MOS of each pair of splits, dimension by dimension.

    Clips of one prompt are not independent, so a prompt counts once, by the mean of its clips.
    Source: two-sample Kolmogorov-Smirnov test (Smirnov 1939), SciPy's `ks_2samp`; Bonferroni's correction.
    """
    from scipy.stats import ks_2samp

    means = {table.split: _prompt_means(table) for table in tables}
    untested: list[tuple[str, str, str, NDArray[np.float64], NDArray[np.float64]]] = []
    for (first, left), (second, right) in combinations(means.items(), 2):
        for at, dimension in enumerate(DIMENSIONS):
            x, y = left[:, at][~np.isnan(left[:, at])], right[:, at][~np.isnan(right[:, at])]
            if len(x) and len(y):
                untested.append((dimension, first, second, x, y))
    tested = []
    for dimension, first, second, x, y in untested:
        test = ks_2samp(x, y)
        p = min(1.0, float(test.pvalue) * len(untested))
        tested.append(Difference(dimension, first, second, (len(x), len(y)), float(test.statistic), p))
    return tested


def _prompt_means(table: Table) -> NDArray[np.float64]:
    """(P, 5) the mean MOS of each prompt's clips; NaN where it has none."""
    mos, _ = mos_of(table)
    row_of = {line: row for row, line in enumerate(table.rows)}
    clips_of: dict[str, list[int]] = {}
    for line, prompt in table.texts("Prompt").items():
        clips_of.setdefault(prompt_key(prompt), []).append(row_of[line])
    means = np.full((len(clips_of), len(DIMENSIONS)), np.nan)
    for row, clips in enumerate(clips_of.values()):
        rated = ~np.isnan(mos[clips])
        counts = rated.sum(axis=0)
        sums = np.where(rated, mos[clips], 0.0).sum(axis=0)
        means[row, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return means


def _check_leaks(suites: Suites, tables: list[Table]) -> list[Finding]:
    """Prompts that stand in more than one split: what was learned in one would be asked in the other."""
    import great_expectations.expectations as gxe
    import pandas as pd

    places: dict[str, dict[str, list[int]]] = {}
    for table in tables:
        for line, prompt in table.texts("Prompt").items():
            places.setdefault(prompt_key(prompt), {}).setdefault(table.file, []).append(line)
    table_of = {table.file: table for table in tables}
    rows = []
    for lines_of in places.values():
        clips = {table.split: len(lines_of.get(table.file, ())) for table in tables}
        file, lines = next(iter(lines_of.items()))
        rows.append({"first row": f"{file}:{lines[0]}", "splits": len(lines_of), **clips})
    lines_at = dict(zip((row["first row"] for row in rows), places.values(), strict=True))

    def finding(place: str) -> Finding:
        lines_of = lines_at[place]
        file, lines = list(lines_of.items())[-1]
        where = " and ".join(f"{name} ({_enumerated(at)})" for name, at in lines_of.items())
        message = f"One prompt stands in two splits: {where}; keep all its rows in one of them."
        prompt = table_of[file].rows[lines[0]]["Prompt"]
        return Finding("error", "prompt-in-two-splits", file, lines[0], prompt, message)

    frame = pd.DataFrame(rows, columns=["first row", "splits", *(table.split for table in tables)])
    rule = gxe.ExpectColumnValuesToBeBetween(column="splits", max_value=1, **about("error", "prompt-in-two-splits"))
    return suites.check("split-prompts", frame, [rule], "first row", lambda outcome: map(finding, outcome.rows))


def _check_sizes(
    suites: Suites, tables: list[Table], bounds: ValidateSettings
) -> tuple[list[Finding], dict[str, dict[str, int]]]:
    import great_expectations.expectations as gxe
    import pandas as pd

    sizes = {
        table.split: {"clips": table.count, "prompts": len(set(map(prompt_key, table.texts("Prompt").values())))}
        for table in tables
    }
    file_of = {table.split: table.file for table in tables}
    rules = []
    for what, least, setting in (
        ("prompts", bounds.small_split_prompts, "small_split_prompts"),
        ("clips", bounds.small_split_clips, "small_split_clips"),
    ):
        small = f"The split has fewer than {least} {what} ({setting}): what is measured on it will scatter; add some."
        rules.append(
            gxe.ExpectColumnValuesToBeBetween(
                column=what, min_value=least, **about("warning", f"few-{what}", small, what)
            )
        )
    # A table without any prompt has been named for that already.
    frame = pd.DataFrame(
        [{"split": split, **size, "prompts": size["prompts"] or float("nan")} for split, size in sizes.items()]
    )
    findings = suites.check(
        "split-sizes",
        frame,
        rules,
        "split",
        lambda outcome: (
            Finding(
                outcome.severity,
                outcome.check,
                file_of[split],
                None,
                counted(sizes[split][outcome.column or ""], (outcome.column or "")[:-1]),
                outcome.message,
            )
            for split in outcome.rows
        ),
    )
    return [*findings, _shares(sizes, tables[0].file.split("/", 1)[0])], sizes


def _shares(sizes: dict[str, dict[str, int]], data: str) -> Finding:
    clips, prompts = (sum(size[what] for size in sizes.values()) for what in ("clips", "prompts"))
    shares = ", ".join(f"{split} {100 * sizes[split]['clips'] / clips:.0f} %" for split in SPLITS if split in sizes)
    by_split = ", ".join(f"{split} {counted(size['prompts'], 'prompt')}" for split, size in sizes.items())
    message = f"Of {counted(clips, 'clip')} of {counted(prompts, 'prompt')} ({by_split})."
    return Finding("info", "split-shares", data, None, shares, message)


def _check_drift(suites: Suites, tested: list[Difference], file_of: dict[str, str]) -> list[Finding]:
    import great_expectations.expectations as gxe
    import pandas as pd

    named = {f"{one.dimension}, {one.first} and {one.second}": one for one in tested}
    frame = pd.DataFrame(
        {
            "compared": list(named),
            "statistic": [one.statistic for one in tested],
            "p, corrected": [one.p for one in tested],
            _COUNTED: [one.statistic if one.significant else 0.0 for one in tested],
        }
    )
    rule = gxe.ExpectColumnValuesToBeBetween(
        column=_COUNTED, max_value=DRIFT_STATISTIC, **about("warning", "label-drift")
    )

    def finding(name: str) -> Finding:
        one = named[name]
        message = (
            f"{one.dimension}_MOS differs between {one.first} and {one.second}: Kolmogorov-Smirnov {one.statistic:.3f},"
            f" p {one.p:.2g} after Bonferroni over {len(tested)} tests, on the means of {one.prompts[0]} and "
            f"{one.prompts[1]} prompts (clips of one prompt are not independent): draw the splits by chance from all "
            "prompts."
        )
        return Finding("warning", "label-drift", file_of[one.second], None, name, message)

    return suites.check("split-drift", frame, [rule], "compared", lambda outcome: map(finding, outcome.rows))


def _enumerated(lines: list[int]) -> str:
    named = ", ".join(map(str, lines[:_LINES_NAMED]))
    more = len(lines) - _LINES_NAMED
    return f"line{'s' if len(lines) > 1 else ''} {named}{f' and {more} more' if more > 0 else ''}"
