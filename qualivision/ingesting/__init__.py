"""New rated videos from an inbox into the data set: checked first, a batch at a time, all of it or nothing.

A batch is a folder of the inbox with one label table and its videos at any depth. It is taken when nothing in it has
changed for a while and every row has its video; it is checked in a copy before anything reaches the data set, and
refused whole for a single error. What is there already is left alone, so the same call is right at any time.

    inbox.py      the folder or bucket, and how a batch stands
    tables.py     the tables of a batch, under our names
    dataset.py    the tables of the data set, and which split a prompt goes to
    checks.py     is it fit: by the rules of `validation`, and against the data set
    adding.py     videos and rows into the data set, whole at every moment
    receipts.py   what was found out about a batch
    versioning.py `dvc add`, `dvc push`
    results.py    what came of it
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import environment
from qualivision.cache import write_atomically
from qualivision.ingesting import adding, inbox
from qualivision.ingesting.checks import Plan, check_batch, check_ratings, plan
from qualivision.ingesting.dataset import read_data_set
from qualivision.ingesting.inbox import Inbox
from qualivision.ingesting.receipts import Receipt, Receipts
from qualivision.ingesting.results import BusyError, Ingested, IngestError, Outcome, report_file
from qualivision.ingesting.tables import read_tables, tables_of
from qualivision.labels import SPLITS
from qualivision.validation.report import Finding, counted

if TYPE_CHECKING:
    from qualivision.ingesting.dataset import DataSet
    from qualivision.ingesting.inbox import Batch
    from qualivision.ingesting.tables import BatchTables
    from qualivision.progress import Advance
    from qualivision.settings import Settings

__all__ = ["BusyError", "IngestError", "Ingested", "Outcome", "ingest", "state_folder"]

_NAMED = 3


def state_folder() -> Path:
    """Where the notes of a run lie: receipts, copies of batches at work, a lock."""
    return environment.STATE / "ingest"


def ingest(
    settings: Settings,
    data: Path,
    reports: Path,
    *,
    url: str | None = None,
    advance: Advance,
    busy_wait_seconds: float = adding.BUSY_WAIT_SECONDS,
) -> Ingested:
    """Take in every batch of the inbox that is complete and sound.

    Args:
        settings: the sections `ingest`, `validate` and `decode` of it.
        data: the data folder, with a label table for each split.
        reports: where `ingest-<batch>.json` goes, of each batch that was taken or refused.
        url: another inbox than that of the settings.
        advance: told how many videos of a batch were copied, then opened.
        busy_wait_seconds: how long a running stage of `dvc repro` is waited for before the batch is left waiting.
    Raises:
        BusyError: another run is at it.
        IngestError: the inbox can't be read, the data set is broken, the disk is full.
    """
    from filelock import FileLock, Timeout

    state = state_folder()
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise BusyError(f"{state}: another run takes in the inbox; run this again when it is done") from err
    try:
        source = Inbox(url or settings.ingest.inbox)
        batches, strays = source.look()
        receipts = Receipts(state / "receipts.json", source.url)
        receipts.keep_only(batch.name for batch in batches)
        run = _Run(source, receipts, settings, data, reports, state, advance, busy_wait_seconds)
        outcomes = tuple(run.batch(batch) for batch in batches)
        run.remove_leftovers({batch.name: batch for batch in batches})
        return Ingested(source.url, outcomes, strays)
    finally:
        lock.release()


@dataclass
class _Run:
    """One run over the inbox."""

    source: Inbox
    receipts: Receipts
    settings: Settings
    data: Path
    reports: Path
    state: Path
    advance: Advance
    busy_wait_seconds: float
    _known: DataSet | None = None

    def known(self) -> DataSet:
        """The data set as it stands, after a stopped run was cleared up."""
        if self._known is None:
            if (self.state / adding.PLACING).exists():
                with adding.no_stage_running(self.data, self.busy_wait_seconds):
                    adding.take_back(Path(self.data).absolute(), self.state)
            self._known = read_data_set(self.data)
        return self._known

    def batch(self, batch: Batch) -> Outcome:
        """What comes of one batch."""
        if (before := self._before(batch)) is not None:
            return before
        if not batch.files:
            return _waiting(batch, "it holds no file")
        quiet = batch.quiet_seconds(inbox.now())
        if quiet < self.settings.ingest.settle_seconds:
            return _waiting(batch, f"a file of it changed {quiet:.0f} s ago; it may still be on its way")
        folder = self._folder(batch)
        self.source.fetch(batch, tables_of(batch), folder, lambda done, total: None)
        tables = read_tables(
            batch, folder, {str(ours): theirs for ours, theirs in self.settings.ingest.columns.items()}
        )
        if lacks := _lacks(tables, batch):
            if quiet < 3600 * self.settings.ingest.wait_hours:
                return _waiting(batch, f"{lacks[0]}; it is taken when all of it is there")
            late = f"and nothing came for {self.settings.ingest.wait_hours:g} h (ingest.wait_hours)"
            return self._refuse(batch, [*tables.findings, *lacks[1]], f"{lacks[0]}, {late}")
        return self._complete(batch, tables, folder)

    def _complete(self, batch: Batch, tables: BatchTables, folder: Path) -> Outcome:
        """What comes of a batch that is all there."""
        if tables.broken:
            return self._refuse(batch, tables.findings)
        self.source.fetch(batch, tables.videos.values(), folder, self.advance)
        now = next((one for one in self.source.look()[0] if one.name == batch.name), None)
        if now is None or now.fingerprint != batch.fingerprint:
            return _waiting(batch, "it changed while it was read")
        findings = [
            *tables.findings,
            *check_batch(tables, folder, self.settings.validate_, self.settings.decode, self.advance),
            *check_ratings(tables),
        ]
        if any(found.severity == "error" for found in findings):
            return self._refuse(batch, findings)  # names and prompts can't be relied on, so they are not looked at
        try:
            with adding.no_stage_running(self.data, self.busy_wait_seconds):
                self._known = None  # somebody may have changed it before it was locked
                known = self.known()
                made = plan(tables, folder, known, self.settings.ingest.shares)
                findings += made.findings
                if any(found.severity == "error" for found in findings):
                    return self._refuse(batch, findings, known=known)
                staged = {name: folder / path for name, path in tables.videos.items()}
                adding.add(adding.change_of(made, staged, known), known.root, self.state)
                self._known = None  # it is another one now
        except BusyError as err:
            return _waiting(batch, str(err))
        return self._taken(batch, tables, made, findings)

    def _taken(self, batch: Batch, tables: BatchTables, made: Plan, findings: list[Finding]) -> Outcome:
        rows = {split: len(made.rows[split]) for split in SPLITS if made.rows[split]}
        prompts = {split: len(made.prompts[split]) for split in SPLITS if made.prompts[split]}
        said = [f"{split} {count}" for split, count in rows.items()]
        parts = [f"{counted(sum(rows.values()), 'clip')} added ({', '.join(said)})" if rows else "no clip is new"]
        if prompts:
            parts.append(f"{counted(sum(prompts.values()), 'prompt')} new")
        if made.already:
            parts.append(f"{counted(len(made.already), 'clip')} there already")
        if singles := sum(map(len, made.ratings.values())):
            parts.append(f"single ratings of {counted(singles, 'clip')}")
        if findings:
            parts.append(counted(len(findings), "warning"))
        report = report_file(self.reports, batch.name)
        done = Outcome(
            batch.name, "taken", ", ".join(parts), True, rows, prompts, len(made.already), tuple(findings), report
        )
        write_atomically(report, done.as_json().encode("utf-8", "backslashreplace"))
        self.receipts.keep(batch.name, Receipt("taken", batch.fingerprint, names=tuple(sorted(tables.videos))))
        adding.remove_staged([self._folder(batch)])
        return done

    def _refuse(self, batch: Batch, findings: list[Finding], why: str = "", known: DataSet | None = None) -> Outcome:
        """Refuse a batch, because of `known` if that is given; a report is written."""
        errors = [found for found in findings if found.severity == "error"]
        first = f"{errors[0].place}: {errors[0].check}, {errors[0].value!r}" if errors else ""
        why = why or f"{counted(len(errors), 'error')}, the first at {first}"
        receipt = Receipt("refused", batch.fingerprint, self._context(known), why=why, findings=tuple(findings))
        before = self.receipts.of(batch.name)
        new = (
            before is None
            or before.state != "refused"
            or (before.fingerprint, before.verdict) != (receipt.fingerprint, receipt.verdict)
        )
        report = report_file(self.reports, batch.name)
        refused = Outcome(batch.name, "refused", why, new, findings=tuple(findings), report=report)
        write_atomically(report, refused.as_json().encode("utf-8", "backslashreplace"))
        self.receipts.keep(batch.name, receipt)
        adding.remove_staged([self._folder(batch)])
        return refused

    def _before(self, batch: Batch) -> Outcome | None:
        """What an earlier run found out of a batch, where that still holds."""
        receipt = self.receipts.of(batch.name)
        if receipt is None or receipt.fingerprint != batch.fingerprint:
            return None
        if receipt.state == "taken":
            if not self.known().places.keys() >= set(receipt.names):
                return None  # the data set was set back: the inbox says what it has to have
            return Outcome(batch.name, "taken", "done before", new=False, already=len(receipt.names))
        if receipt.context not in (self._context(), self._context(self.known())):
            return None
        report = report_file(self.reports, batch.name)
        return Outcome(batch.name, "refused", receipt.why, new=False, findings=receipt.findings, report=report)

    def _context(self, known: DataSet | None = None) -> str:
        """What a refusal hangs on beside the batch: another may come of it when one of these changes."""
        parts = [self.settings.validate_, self.settings.decode, self.settings.ingest, known and known.fingerprint]
        return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()

    def _folder(self, batch: Batch) -> Path:
        """Where a batch as it stands is copied to; the last part is its name, which findings show."""
        return self.state / "staged" / batch.fingerprint[:32] / batch.name

    def remove_leftovers(self, batches: dict[str, Batch]) -> None:
        """Remove copies of batches that have changed or gone since."""
        current = {batch.fingerprint[:32] for batch in batches.values()}
        staged = self.state / "staged"
        if staged.is_dir():
            adding.remove_staged(
                folder
                for folder in staged.iterdir()
                if folder.name not in current or not any(path.is_file() for path in folder.rglob("*"))
            )


def _waiting(batch: Batch, why: str) -> Outcome:
    return Outcome(batch.name, "waiting", why, new=False)


def _lacks(tables: BatchTables, batch: Batch) -> tuple[str, list[Finding]] | None:
    """What a batch lacks to be complete, in words and as findings; None where it lacks nothing."""
    if tables.labels is None and not tables.broken:
        says = "it has no label table (.csv or .tsv)"
        return says, [Finding("error", "missing-table", batch.name, None, "", f"{says[3:].capitalize()}: add it.")]
    if not tables.missing or tables.labels is None:
        return None
    file = tables.labels.file
    findings = [
        Finding("error", "row-without-video", file, line, name, "No file of the batch has this name: add it.")
        for line, name in tables.missing.items()
    ]
    names = ", ".join(f"{name} (line {line})" for line, name in list(tables.missing.items())[:_NAMED])
    more = f" and {len(tables.missing) - _NAMED} more" if len(tables.missing) > _NAMED else ""
    return f"{file} names videos that are not there: {names}{more}", findings
