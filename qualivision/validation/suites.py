"""Great Expectations, in one place: rules are held against a table, and what came of it is kept for the Data Docs.

Owns the context, running a suite, and what its documentation shows of the data. Knows no rule, and no file of a data
set: `rules.py`, `split.py` and `clips.py` bring rules with a pandas table and turn outcomes into findings. Nothing is
written but the Data Docs (`docs.py`). Great Expectations takes some 3 s to import: that happens in `Suites()`.
"""

from __future__ import annotations

import html
import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qualivision.validation.report import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult

    from qualivision.validation.report import Finding, Severity

ROWS_SHOWN: Final = 200
"""Rows that break one rule and are shown in the Data Docs; validation.json has them all."""
VALUE_CHARACTERS: Final = 300

_GX_SEVERITY: Final = {"error": "critical", "warning": "warning", "info": "info"}


def about(severity: Severity, check: str, message: str = "", column: str | None = None) -> dict[str, Any]:
    """What a rule carries beside its own arguments: severity, name, what a finding says and which column it shows."""
    attributes = {"check": check, "severity": severity}  # what the Data Docs show of it
    return {
        "severity": _GX_SEVERITY[severity],
        "meta": {"message": message, "column": column, "attributes": attributes},
    }


@dataclass(frozen=True)
class Outcome:
    """A rule that did not hold."""

    severity: Severity
    check: str
    message: str
    column: str | None
    rows: tuple[Any, ...]
    """The rows that break it, by the index column; () for a rule about the table as a whole."""


class Suites:
    """One validation: each `check` holds one table against one suite."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
        with _without_spark():
            import great_expectations as gx
        from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
        bars = {"globally": False, "metric_calculations": False}
        config = DataContextConfig(store_backend_defaults=stores, progress_bars=bars)  # type: ignore[arg-type]
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._source = self._context.data_sources.add_pandas("data")
        self._held: dict[str, dict[str, int]] = {}

    def check(
        self,
        name: str,
        frame: pd.DataFrame,
        rules: list[Any],
        index: str,
        findings_of: Callable[[Outcome], Iterable[Finding]],
    ) -> list[Finding]:
        """Hold a table against rules.

        Args:
            name: of the suite, and of its pages; no dots.
            frame: the table; `index` names its rows.
            rules: expectations, each with `**about(...)`.
            index: the column that names a row ("line").
            findings_of: says what an outcome means.
        Raises:
            RuntimeError: a rule could not be evaluated; that is a fault of ours, not of the data.
        """
        import great_expectations as gx

        suite = self._context.suites.add(gx.ExpectationSuite(name=name, expectations=rules))
        batches = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        batch = batches.get_batch({"dataframe": frame})
        result = batch.validate(
            suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [index]}
        )
        findings = [found for one in result.results if not one.success for found in findings_of(_outcome(one, index))]
        # A warning fails its rule, and not the data set.
        result.success = all(found.severity != "error" for found in findings)
        held = sum(bool(one.success) for one in result.results)
        self._held[name] = {"evaluated": len(result.results), "held": held}
        self._keep(result, batch.id, suite.name, index)
        return findings

    def held(self, name: str) -> dict[str, int]:
        """How many expectations of a suite were `evaluated`, and how many of them `held`."""
        return self._held[name]

    def build_docs(self, folder: Path) -> None:
        """Write the Data Docs of all suites so far; the folder is replaced."""
        from qualivision.validation.docs import build

        build(self._context, folder)

    def _keep(self, result: ExpectationSuiteValidationResult, batch: str, suite: str, index: str) -> None:
        """Store a result for the Data Docs, cut to what a page can show."""
        from great_expectations.core.id_dict import BatchSpec
        from great_expectations.core.run_identifier import RunIdentifier
        from great_expectations.data_context.types.resource_identifiers import (
            ExpectationSuiteIdentifier,
            ValidationResultIdentifier,
        )

        run = RunIdentifier(run_name="validate")
        result.meta["run_id"] = run
        result.meta["batch_spec"] = BatchSpec(data_asset_name=suite)  # or the page calls the table "None"
        for one in result.results:
            one.result = _presentable(one.result, index)
        key = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite), run, batch)
        self._context.validation_results_store.store_validation_results(result, key)


@contextmanager
def _without_spark() -> Iterator[None]:
    """Great Expectations imports PySpark where it is installed, all of it; one of its parts then ends the process with
    exit code 0, and a bad data set would pass.
    """
    found = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "pyspark"}
    sys.modules.update(dict.fromkeys(["pyspark", *found]))  # type: ignore[arg-type]
    try:
        yield
    finally:
        del sys.modules["pyspark"]
        sys.modules.update(found)


def _outcome(result: Any, index: str) -> Outcome:
    meta = result.expectation_config.meta
    check = meta["attributes"]["check"]
    unexpected = result.result.get("unexpected_index_list")
    if not unexpected and result.expectation_config.type.startswith("expect_column_value"):
        raise RuntimeError(f"rule {check} could not be evaluated: {result.exception_info}")
    rows = tuple(row[index] for row in unexpected or ())
    return Outcome(meta["attributes"]["severity"], check, meta["message"], meta["column"], rows)


def _presentable(result: dict[str, Any], index: str) -> dict[str, Any]:
    """What a page shows of one rule's result: the first rows, and values that are text and no markup.

    Great Expectations writes values from the data into its pages as they are, and lists 20 of them.
    """
    if "unexpected_index_list" not in result:
        return result
    rows = [{name: _text(value) for name, value in row.items()} for row in result["unexpected_index_list"][:ROWS_SHOWN]]
    values = [_text(value) for value in result["unexpected_list"][:ROWS_SHOWN]]
    counts = [{"value": value, "count": values.count(value)} for value in dict.fromkeys(values)]
    kept = {name: value for name, value in result.items() if name != "unexpected_index_query"}
    return kept | {
        "unexpected_index_list": rows,
        "unexpected_index_column_names": [index],  # some expectations leave it out
        "unexpected_list": values,
        "partial_unexpected_list": values,
        "partial_unexpected_index_list": rows,
        "partial_unexpected_counts": counts,
    }


def _text(value: Any) -> Any:
    return html.escape(shown(value, VALUE_CHARACTERS)) if isinstance(value, str) else value
