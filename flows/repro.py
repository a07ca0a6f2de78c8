"""One stage in this checkout, by `dvc repro`, and why it failed where it did."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from flows.checkout import run_dvc
from qualivision.errors import AWAY_EXIT_CODE, QualiVisionError
from qualivision.stages import places

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.commands import Ended

_SAID = 20
_STAGE_ENDED = re.compile(r"exited with (-?\d+)")


class StageFailedError(QualiVisionError):
    """A stage that could not be finished: names it, says why, and quotes it.

    Attributes:
        may_pass: whether the same may do better a while later.
    """

    def __init__(self, said: str, *, may_pass: bool) -> None:
        super().__init__(said)
        self.may_pass = may_pass

    @classmethod
    def of(cls, stage: str, ended: Ended, seconds: float) -> StageFailedError:
        """What the end of its `dvc repro` means."""
        code = _code_of(ended)
        killed = code < 0 or code > 128
        if ended.late:
            why = f"was stopped after {seconds / 3600:g} h, the limit that flows.stage_hours of params.yaml sets"
        elif killed:
            number = -code if code < 0 else code - 128
            why = f"was killed by signal {number}" + (", as the kernel does when memory runs out" * (number == 9))
        elif code == AWAY_EXIT_CODE:
            why = "needs something that is away"
        else:
            why = f"failed (exit code {code})"
        said = f"stage {stage} {why}:\n" + "\n".join(_excerpt(ended.lines))
        return cls(said, may_pass=not ended.late and (killed or code == AWAY_EXIT_CODE))


def _excerpt(lines: tuple[str, ...]) -> list[str]:
    """Of what the stage said the beginning and the end: a report names the worst first, a defect's traceback last."""
    start = next((at for at, line in enumerate(lines) if line.startswith("Running stage")), 0)
    said = list(lines[start:])
    left = len(said) - 2 * _SAID
    return said if left <= 0 else [*said[:_SAID], f"... {left} lines more are in the log ...", *said[-_SAID:]]


def _code_of(ended: Ended) -> int:
    """The exit code of the stage's own command, which DVC tells in words."""
    for line in reversed(ended.lines):
        if found := _STAGE_ENDED.search(line):
            return int(found[1])
    return ended.code


def repro_here(
    stage: str, say: Callable[[str], None], *, seconds: float, force: bool = False, alone: bool = False
) -> bool:
    """Bring a stage, and what it depends on, up to date; returns whether anything had to run.

    Args:
        stage: as `dvc.yaml` names it.
        say: told each line that it prints.
        seconds: that it may take.
        force: make it again, whatever there is of it. What it depends on has to be there.
        alone: leave what it depends on as it is.
    Raises:
        StageFailedError: it failed; what it had cached by then is kept.
    """
    if force:
        clear(stage)
    alone = alone or (force and "@" in stage)
    options = [*(["--force"] if force else []), *(["--single-item"] if alone else [])]
    ended = run_dvc(["repro", *options, stage], say, seconds=seconds)
    if not ended.ok:
        raise StageFailedError.of(stage, ended, seconds)
    return any(line.startswith("Running stage") for line in ended.lines)


def clear(stage: str) -> None:
    """Remove what a stage goes on from, so that it starts with nothing. DVC's cache still has the last that it made."""
    kind, _, model = stage.partition("@")
    kept = {
        "frames": places.frames_dir,
        "prompts": places.prompts_dir,
        "encode": places.stems_dir,
        "train": places.checkpoint_dir,
    }
    if kind in kept:
        shutil.rmtree(kept[kind](model), ignore_errors=True)
