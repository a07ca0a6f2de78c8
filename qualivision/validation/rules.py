"""The rules of a label table, as Great Expectations suites, and the one that spans tables.

Owns which rules there are and what their findings say. Does not read files or look at videos.
Great Expectations takes some 4 s to import, so that happens in `check_tables` and not before.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

from qualivision.labels import MOS_COLUMNS, MOS_MAX, MOS_MIN
from qualivision.validation.report import Finding
from qualivision.validation.tables import NO_FILE_NAME, Table, is_missing
from qualivision.validation.videos import VIDEO_ENDINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import great_expectations as gx
    import pandas as pd

    from qualivision.settings import ValidateSettings

# A MOS as a person writes it. Narrower than float(), which also takes "1_0", "nan" and "infinity".
# Like all patterns here it means the same to Python and to RE2, which pandas uses where pyarrow is installed.
_NUMBER = r"^[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*$"
_VIDEO_ENDING = rf"(?i)\.(?:{'|'.join(sorted(VIDEO_ENDINGS))})[ \t\r\n]*$"
_LINES_NAMED = 10


def check_tables(tables: list[Table], bounds: ValidateSettings) -> list[Finding]:
    """Hold each table against its suite.

    Raises:
        RuntimeError: Great Expectations could not evaluate a rule; that is a fault of ours, not of the data.
    """
    if not tables:
        return []
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    batches = (
        context.data_sources.add_pandas("labels")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("all")
    )
    findings: list[Finding] = []
    for table in tables:
        result = batches.get_batch({"dataframe": _frame(table)}).validate(
            _suite(table, bounds),
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["line"]},
        )
        for outcome in result.results:
            if not outcome.success:
                findings += _findings(table, outcome)
    return findings


def check_leaks(tables: list[Table]) -> list[Finding]:
    """Prompts that stand in more than one split: what was learned in one would be asked in the other."""
    places: dict[str, dict[str, list[int]]] = {}
    for table in tables:
        for line, prompt in table.texts("Prompt").items():
            key = " ".join(prompt.split()).casefold()
            places.setdefault(key, {}).setdefault(table.file, []).append(line)
    prompts = {table.file: table.texts("Prompt") for table in tables}
    findings = []
    for lines_of in places.values():
        if len(lines_of) > 1:
            file, lines = list(lines_of.items())[-1]
            where = " and ".join(f"{name} ({_enumerated(at)})" for name, at in lines_of.items())
            message = f"One prompt stands in two splits: {where}; keep all its rows in one of them."
            findings.append(Finding("error", "prompt-in-two-splits", file, lines[0], prompts[file][lines[0]], message))
    return findings


def _enumerated(lines: list[int]) -> str:
    named = ", ".join(map(str, lines[:_LINES_NAMED]))
    more = len(lines) - _LINES_NAMED
    return f"line{'s' if len(lines) > 1 else ''} {named}{f' and {more} more' if more > 0 else ''}"


def _frame(table: Table) -> pd.DataFrame:
    """The columns that have rules: text cells, None where nothing stands; MOS also as numbers, else NaN."""
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
    return pd.DataFrame(columns)


def _number(cell: str) -> float:
    return float(cell) if re.match(_NUMBER, cell) else float("nan")


def _numbers(column: str) -> str:
    return f"{column} as a number"


def _suite(table: Table, bounds: ValidateSettings) -> gx.ExpectationSuite:
    """The rules that apply to this table. Each carries in its `meta` what a finding needs."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    def about(check: str, message: str, column: str | None = None) -> dict[str, Any]:
        return {"meta": {"check": check, "message": message, "column": column}}

    rules: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=1, **about("empty-table", "It has a header and no row: every split needs rows.")
        )
    ]
    present = ", ".join(table.columns)
    for column in table.needed:
        missing = f"Column {column} is missing: add it; the header has {present}."
        rules.append(gxe.ExpectColumnToExist(column=column, **about("missing-column", missing, column)))
    if table.rows:  # a rule about cells can't be evaluated where there are none
        for column in table.needed:
            # A rule on a missing column raises nothing and finds nothing: it would only hide.
            if column in table.columns:
                rules += _mos_rules(column, about) if column in MOS_COLUMNS else _text_rules(column, bounds, about)
    return gx.ExpectationSuite(name=f"{table.split} labels", expectations=rules)


def _text_rules(column: str, bounds: ValidateSettings, about: Callable[..., dict[str, Any]]) -> list[Any]:
    import great_expectations.expectations as gxe

    if column == "Prompt":
        longest = bounds.max_prompt_characters
        nothing = "The row has no prompt, or a word that CSV readers take for none: write the prompt of its video."
        too_long = f"The prompt has more than {longest} characters: shorten it, or raise max_prompt_characters."
        return [
            gxe.ExpectColumnValuesToNotBeNull(column=column, **about("missing-prompt", nothing, column)),
            gxe.ExpectColumnValueLengthsToBeBetween(
                column=column, max_value=longest, **about("prompt-length", too_long, column)
            ),
        ]
    nothing = "The row names no video: write the name of its file."
    no_name = "This is no plain file name: write it without folders, and without blanks at its ends."
    ending = f"This is no name of a video: it must end in {', '.join(sorted(VIDEO_ENDINGS))}."
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, **about("missing-video-name", nothing, column)),
        gxe.ExpectColumnValuesToNotMatchRegex(
            column=column, regex=NO_FILE_NAME, **about("bad-video-name", no_name, column)
        ),
        gxe.ExpectColumnValuesToMatchRegex(column=column, regex=_VIDEO_ENDING, **about("video-ending", ending, column)),
        gxe.ExpectColumnValuesToBeUnique(column=column, **about("duplicate-row", "", column)),
    ]


def _mos_rules(column: str, about: Callable[..., dict[str, Any]]) -> list[Any]:
    import great_expectations.expectations as gxe

    way_out = "write the mean of its ratings, or remove the row."
    nothing = f"The row has no {column}: {way_out}"
    no_number = f"{column} is no number: {way_out}"
    out_of_range = f"{column} is not between {MOS_MIN:g} and {MOS_MAX:g}: {way_out}"
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, **about("mos-missing", nothing, column)),
        gxe.ExpectColumnValuesToMatchRegex(
            column=column, regex=_NUMBER, **about("mos-not-a-number", no_number, column)
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column=_numbers(column),
            min_value=MOS_MIN,
            max_value=MOS_MAX,
            **about("mos-range", out_of_range, column),
        ),
    ]


def _findings(table: Table, outcome: Any) -> Iterator[Finding]:
    """What a rule that did not hold says about a table."""
    meta = outcome.expectation_config.meta
    check, message, column = meta["check"], meta["message"], meta["column"]
    if check == "empty-table":
        yield Finding("error", check, table.file, None, "0 rows", message)
        return
    if check == "missing-column":
        yield Finding("error", check, table.file, 1, column, message)
        return
    unexpected = outcome.result.get("unexpected_index_list")
    if not unexpected:
        raise RuntimeError(f"{table.file}: rule {check} could not be evaluated: {outcome.exception_info}")
    lines = sorted(int(row["line"]) for row in unexpected)
    if check == "duplicate-row":
        yield from _duplicates(table, lines)
        return
    for line in lines:
        yield Finding("error", check, table.file, line, table.rows[line][column], message)


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
