"""A stage that another machine runs: what is handed over, and what comes back.

A handover holds versions and no data: those go through the DVC remote. The other checkout has to have the same code,
for what a stage makes is recorded as made by it.
"""

from __future__ import annotations

import fcntl
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from flows.checkout import STAGES, entries, hash_of_stages, parts_of, put_entries
from flows.remote import bring, check_remote, pull, share
from flows.repro import StageFailedError, repro_here
from qualivision import environment
from qualivision.errors import AwayError, QualiVisionError
from qualivision.settings import PARAMS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class OtherCodeError(QualiVisionError):
    """The checkout that is to run a stage has other code than the one that asks: names the files and the way out."""


class Handover(BaseModel):
    """What another checkout needs to know to run a stage.

    Attributes:
        stage: as `dvc.yaml` names it.
        asker: the flow run that wants it; when that ends, nobody wants it any more.
        commit: the asker's commit, for people.
        code: hash of every file and folder of code that the stage depends on.
        files: the text of `params.yaml`, and of the `.dvc` files whose data the stage reads.
        lock: entries of `dvc.lock`: the stage's own, and those of the stages that made what it reads.
        remote: the DVC remote through which data goes.
        seconds: that the stage may take.
        force: make it anew, whatever there is of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    asker: str
    commit: str
    code: dict[str, str]
    files: dict[str, str]
    lock: dict[str, Any]
    remote: str
    seconds: float
    force: bool = False


class Outcome(BaseModel):
    """What came of it.

    Attributes:
        ran: whether anything had to be done.
        entry: the stage's entry of `dvc.lock`; None where it failed.
        files: the text of the outputs that git keeps.
        error: why it failed.
        may_pass: whether the same may do better a while later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ran: bool = False
    entry: dict[str, Any] | None = None
    files: dict[str, str] = {}
    error: str = ""
    may_pass: bool = False

    @classmethod
    def of_error(cls, err: QualiVisionError) -> Outcome:
        """How a stage failed."""
        return cls(error=str(err), may_pass=isinstance(err, AwayError) or getattr(err, "may_pass", False))


def hand_over(stage: str, *, asker: str, remote: str, seconds: float, force: bool) -> Handover:
    """What another checkout needs to know to run a stage as this one would; see `Handover`."""
    parts = parts_of(stage)
    return Handover(
        stage=stage,
        asker=asker,
        commit=_commit(),
        code=dict(parts.code),
        files={path: Path(path).read_text(encoding="utf-8") for path in (str(PARAMS_FILE), *parts.sources)},
        lock=entries([stage, *parts.makers]),
        remote=remote,
        seconds=seconds,
        force=force,
    )


def carry_out(work: Handover, say: Callable[[str], None]) -> Outcome:
    """Run a stage for another checkout, in this one.

    `params.yaml`, the `.dvc` files and `dvc.lock` of this checkout become the asker's. Stages that were handed over
    with others wait for their turn. What the stage made here before it goes on from, as it would at home.

    Raises:
        OtherCodeError: this checkout's code is another.
        AwayError: the remote does not answer; RemoteError: there is none, or it lacks what the stage reads.
        StageFailedError: the stage failed.
    """
    stage = work.stage
    check_remote(work.remote)
    with _as_asked(work.files):
        _refuse_other_code(work)
        put_entries(work.lock, keep=[stage])  # what was made here last is nearer than what the asker has
        parts = parts_of(stage)
        if parts.inputs:
            pull(parts.inputs, work.remote, say, seconds=work.seconds, replace=True)
        bring(stage, work.remote, say, seconds=work.seconds, anew=work.force)
        ran = repro_here(stage, say, seconds=work.seconds, force=work.force, alone=True)
        share(stage, work.remote, say, seconds=work.seconds)
        files = {path: Path(path).read_text(encoding="utf-8") for path in parts.files}
        return Outcome(ran=ran, entry=entries([stage])[stage], files=files)


def take_over(work: Handover, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Make what came of a handover this checkout's: the entry of `dvc.lock`, the outputs, the files that git keeps.

    Raises:
        StageFailedError: it failed there.
        AwayError, RemoteError: the outputs can't be pulled.
    """
    if outcome.entry is None:
        raise StageFailedError(outcome.error, may_pass=outcome.may_pass)
    put_entries({work.stage: outcome.entry})
    if outputs := parts_of(work.stage).outputs:
        pull(outputs, work.remote, say, seconds=work.seconds, replace=True)
    for path, text in outcome.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


def _refuse_other_code(work: Handover) -> None:
    here: Mapping[str, str] = {str(STAGES): hash_of_stages()}
    if here[str(STAGES)] == work.code[str(STAGES)]:  # else there may be no such stage here
        here = parts_of(work.stage).code
    other = sorted(path for path in here if here[path] != work.code.get(path))
    if other:
        raise OtherCodeError(
            f"stage {work.stage}: {Path.cwd()} has other code than the run that asks for it (commit {work.commit}): "
            f"{', '.join(other)}; bring it there, such as by `git checkout . && git pull`"
        )


@contextmanager
def _as_asked(files: Mapping[str, str]) -> Iterator[None]:
    """Hold the checkout with these files as they are given; others that want the same ones are let in beside."""
    environment.STATE.mkdir(parents=True, exist_ok=True)
    with (environment.STATE / "handover.lock").open("w") as turn:
        while True:
            fcntl.flock(turn, fcntl.LOCK_SH)
            if all(_text(path) == text for path, text in files.items()):
                yield
                return
            # From shared to exclusive is not one step: somebody else may come between, so it is looked at again.
            fcntl.flock(turn, fcntl.LOCK_UN)
            fcntl.flock(turn, fcntl.LOCK_EX)
            for path, text in files.items():
                Path(path).write_text(text, encoding="utf-8")


def _text(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
