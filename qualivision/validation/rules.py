"""The rules of a label table, as a Great Expectations suite.

Owns which rules there are, what their findings say, and what is counted of a table. Does not read files, look at
videos, or compare tables (`split.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from qualivision.labels import MOS_COLUMNS, MOS_MAX, MOS_MIN
from qualivision.validation import steps, text
from qualivision.validation.report import Finding
from qualivision.validation.suites import about
from qualivision.validation.tables import NO_FILE_NAME, Table, is_missing
from qualivision.validation.videos import VIDEO_ENDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from qualivision.settings import ValidateSettings
    from qualivision.validation.suites import Outcome, Suites

# A MOS as a person writes it. Narrower than float(), which also takes "1_0", "nan" and "infinity".
# Like all patterns here it means the same to Python and to RE2, which pandas uses where pyarrow is installed.
_NUMBER = r"^[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*$"
_VIDEO_ENDING = rf"(?i)\.(?:{'|'.join(sorted(VIDEO_ENDINGS))})[ \t\r\n]*$"

# Columns that are made for a rule.
_MEANT = "Prompt as it was meant"
_COMPOSED = "Prompt in normal form C"
_THIRDS = "MOS in thirds of a point"


def check_table(suites: Suites, table: Table, bounds: ValidateSettings) -> tuple[list[Finding], dict[str, Any]]:
    """Hold a table against its suite. Returns what was found, and what there is to count."""
    name = f"labels-{table.split}"
    mos, written = mos_of(table)
    findings = suites.check(
        name, _frame(table, mos, written), _rules(table, bounds), "line", lambda outcome: _findings(table, outcome)
    )
    facts: dict[str, Any] = {"rows": table.count, "expectations": suites.held(name)}
    if not np.isnan(mos).all():
        parts, off = steps.step(mos, written), int(steps.rows_off(mos, written, 3).sum())
        facts |= {"mos_step": f"1/{parts}" if parts else None, "rows_not_in_thirds": off}
        findings.append(_step_found(table, parts, off))
    return findings, facts


def mos_of(table: Table) -> tuple[NDArray[np.float64], list[int]]:
    """(N, 5) MOS of a table's rows, NaN where no number from 1 to 5 stands; and the decimals of each column."""
    mos, written = np.full((len(table.rows), len(MOS_COLUMNS)), np.nan), []
    for at, column in enumerate(MOS_COLUMNS):
        cells = [row.get(column, "") for row in table.rows.values()]
        values = np.array([_number(cell) for cell in cells], dtype=float)
        good = (values >= MOS_MIN) & (values <= MOS_MAX)
        mos[good, at] = values[good]
        written.append(steps.decimals([cell for cell, is_good in zip(cells, good, strict=True) if is_good]))
    return mos, written


def _step_found(table: Table, parts: int | None, off: int) -> Finding:
    thirds = f"{off} of {len(table.rows)} rows hold a MOS that is no multiple of 1/3."
    if parts is None:
        message = f"MOS are multiples of no step down to 1/{steps.STEPS} of a point; {thirds}"
    elif parts == 1:
        message = f"Every MOS is a whole number, as one rating is. {thirds}"
    else:
        message = f"Every MOS is a multiple of 1/{parts}, as the mean of {parts} ratings in whole points is. {thirds}"
    return Finding("info", "mos-step", table.file, None, f"1/{parts}" if parts else "none", message)


def _frame(table: Table, mos: NDArray[np.float64], written: list[int]) -> pd.DataFrame:
    """The columns that have rules: text cells, None where nothing stands; MOS also as numbers, else NaN.

    And columns made of them: what a prompt in a wrong encoding was meant to be, None where nothing is wrong.
    """
    import pandas as pd

    lines = list(table.rows)
    columns: dict[str, pd.Series[Any]] = {"line": pd.Series(lines, dtype="int64")}
    for column in table.needed:
        if column in table.columns:
            cells = [table.rows[line][column] for line in lines]
            texts = [None if is_missing(cell, column) else cell for cell in cells]
            columns[column] = pd.Series(texts, dtype=object)
            if column in MOS_COLUMNS:
                columns[_numbers(column)] = pd.Series(map(_number, cells), dtype="float64")
            if column == "Prompt":
                for made, read in ((_MEANT, text.meant), (_COMPOSED, text.composed)):
                    columns[made] = pd.Series([read(cell) if cell else None for cell in texts], dtype=object)
    columns[_THIRDS] = pd.Series(~steps.rows_off(mos, written, 3), dtype=bool)
    return pd.DataFrame(columns)


def _number(cell: str) -> float:
    return float(cell) if re.match(_NUMBER, cell) else float("nan")


def _numbers(column: str) -> str:
    return f"{column} as a number"


def _rules(table: Table, bounds: ValidateSettings) -> list[Any]:
    """The rules that apply to this table."""
    import great_expectations.expectations as gxe

    rules: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=1, **about("error", "empty-table", "It has a header and no row: every split needs rows.")
        )
    ]
    present = ", ".join(table.columns)
    for column in table.needed:
        missing = f"Column {column} is missing: add it; the header has {present}."
        rules.append(gxe.ExpectColumnToExist(column=column, **about("error", "missing-column", missing, column)))
    if not table.rows:  # a rule about cells can't be evaluated where there are none
        return rules
    for column in table.needed:
        # A rule on a missing column raises nothing and finds nothing: it would only hide.
        if column in table.columns:
            if column == "Prompt":
                rules += _prompt_rules(bounds) + _encoding_rules()
            else:
                rules += _mos_rules(column) if column in MOS_COLUMNS else _name_rules()
    if any(column in table.columns for column in MOS_COLUMNS):
        # mostly=0: it holds always, and says how many.
        rules.append(
            gxe.ExpectColumnValuesToBeInSet(column=_THIRDS, value_set=[True], mostly=0.0, **about("info", "mos-step"))
        )
    return rules


def _prompt_rules(bounds: ValidateSettings) -> list[Any]:
    import great_expectations.expectations as gxe

    longest, shortest = bounds.max_prompt_characters, bounds.short_prompt_characters
    nothing = "The row has no prompt, or a word that CSV readers take for none: write the prompt of its video."
    too_long = f"The prompt has more than {longest} characters: shorten it, or raise max_prompt_characters."
    short = f"The prompt has fewer than {shortest} characters (short_prompt_characters): is it whole?"
    return [
        gxe.ExpectColumnValuesToNotBeNull(column="Prompt", **about("error", "missing-prompt", nothing, "Prompt")),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="Prompt", max_value=longest, **about("error", "prompt-length", too_long, "Prompt")
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="Prompt", min_value=shortest, **about("warning", "prompt-short", short, "Prompt")
        ),
    ]


def _encoding_rules() -> list[Any]:
    import great_expectations.expectations as gxe

    patterns = {
        "prompt-control-character": (text.CONTROL, "It holds a control character, which nobody sees: remove it."),
        "prompt-replacement-character": (
            text.REPLACEMENT,
            "It holds U+FFFD, which stands where a letter could not be read: write the letter.",
        ),
        "prompt-blanks": (text.BLANK_AT_AN_END, "It begins or ends with a blank: remove it."),
    }
    made = {
        "prompt-mojibake": (_MEANT, "It looks like UTF-8 that was read as Latin-1: write what was meant,"),
        "prompt-not-nfc": (
            _COMPOSED,
            "Its accents stand apart from their letters (not in normal form C), so it equals no other way to write it:"
            " normalise it,",
        ),
    }
    return [
        gxe.ExpectColumnValuesToNotMatchRegex(
            column="Prompt", regex=regex, **about("warning", check, message, "Prompt")
        )
        for check, (regex, message) in patterns.items()
    ] + [
        gxe.ExpectColumnValuesToBeNull(column=column, **about("warning", check, message, "Prompt"))
        for check, (column, message) in made.items()
    ]


def _name_rules() -> list[Any]:
    import great_expectations.expectations as gxe

    column = "video_name"
    nothing = "The row names no video: write the name of its file."
    no_name = "This is no plain file name: write it without folders, and without blanks at its ends."
    ending = f"This is no name of a video: it must end in {', '.join(sorted(VIDEO_ENDINGS))}."
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, **about("error", "missing-video-name", nothing, column)),
        gxe.ExpectColumnValuesToNotMatchRegex(
            column=column, regex=NO_FILE_NAME, **about("error", "bad-video-name", no_name, column)
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column=column, regex=_VIDEO_ENDING, **about("error", "video-ending", ending, column)
        ),
        gxe.ExpectColumnValuesToBeUnique(column=column, **about("error", "duplicate-row", "", column)),
    ]


def _mos_rules(column: str) -> list[Any]:
    import great_expectations.expectations as gxe

    way_out = "write the mean of its ratings, or remove the row."
    nothing = f"The row has no {column}: {way_out}"
    no_number = f"{column} is no number: {way_out}"
    out_of_range = f"{column} is not between {MOS_MIN:g} and {MOS_MAX:g}: {way_out}"
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, **about("error", "mos-missing", nothing, column)),
        gxe.ExpectColumnValuesToMatchRegex(
            column=column, regex=_NUMBER, **about("error", "mos-not-a-number", no_number, column)
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column=_numbers(column),
            min_value=MOS_MIN,
            max_value=MOS_MAX,
            **about("error", "mos-range", out_of_range, column),
        ),
    ]


def _findings(table: Table, outcome: Outcome) -> Iterator[Finding]:
    """What a rule that did not hold says about a table."""
    severity, check, message, column = outcome.severity, outcome.check, outcome.message, outcome.column
    if check == "empty-table":
        yield Finding(severity, check, table.file, None, "0 rows", message)
    elif check == "missing-column":
        yield Finding(severity, check, table.file, 1, column or "", message)
    elif check == "duplicate-row":
        yield from _duplicates(table, sorted(map(int, outcome.rows)))
    else:
        for line in sorted(map(int, outcome.rows)):
            cell = table.rows[line][column or ""]
            yield Finding(severity, check, table.file, line, cell, message + _meant(check, cell))


def _meant(check: str, cell: str) -> str:
    """The end of a message that says what a prompt was meant to be."""
    read = {"prompt-mojibake": text.meant, "prompt-not-nfc": text.composed}.get(check)
    return "" if read is None else f" {read(cell)!r}."


def _duplicates(table: Table, lines: list[int]) -> Iterator[Finding]:
    """A finding for each row whose video an earlier row has."""
    first: dict[str, int] = {}
    for line in lines:
        name = table.rows[line]["video_name"]
        earlier = first.setdefault(name, line)
        if earlier != line:
            same = "the same row" if table.rows[line] == table.rows[earlier] else "this video with other values"
            message = f"Line {earlier} is {same}: keep one of the lines {earlier} and {line}."
            yield Finding("error", "duplicate-row", table.file, line, name, message)
