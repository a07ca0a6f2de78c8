"""The handover between machines: a stage pulls from a DVC remote what it needs, and pushes to it what it made.

What is here already is not pulled: DVC's cache and the checkout are looked at first. Without `flows.remote` in
`params.yaml` nothing here is called.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from flows.checkout import entries, parts_of, remotes, run_dvc
from qualivision.errors import AwayError, QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flows.commands import Ended

_SAID = 5
_MISSING = ("missing-files", "Missing cache files", "No such file or directory", "does not exist")


class RemoteError(QualiVisionError):
    """A DVC remote that can't be used: names it, and says why and the way out."""


def check_remote(remote: str) -> None:
    """Look whether a remote can be there.

    Raises:
        RemoteError: this checkout has no remote of that name.
        AwayError: it is a folder, which is not there.
    """
    known = remotes()
    if remote not in known:
        raise RemoteError(
            f"flows.remote of params.yaml: DVC knows no remote {remote!r} here (known: {', '.join(known) or 'none'}); "
            f"`dvc remote add {remote} ADDRESS` makes it one, in .dvc/config, for every checkout that commits it"
        )
    url = known[remote]
    # DVC would make the folder, on whatever disk is there in place of one that is not mounted.
    if "://" not in url and not Path(url).is_dir():
        raise AwayError(f"{url}: no such folder, which is the DVC remote {remote!r}; mount it, or make it if it is new")


def bring(stage: str, remote: str, say: Callable[[str], None], *, seconds: float, anew: bool = False) -> None:
    """Pull what a stage needs and is not here: what it reads, and what it made last, which it goes on from.

    Args:
        stage: as `dvc.yaml` names it.
        remote: a DVC remote of this checkout.
        say: told each line that DVC prints.
        seconds: that it may take.
        anew: the stage starts from nothing, so its last outputs are not needed.
    Raises:
        AwayError: the remote does not answer; RemoteError: there is none, or it lacks what the stage reads.
    """
    parts = parts_of(stage)
    deadline = time.monotonic() + seconds
    if wanted := [path for path in parts.inputs if not Path(path).exists()]:
        pull(wanted, remote, say, seconds=seconds)
    made = [path for path in parts.outputs if not Path(path).exists()]
    if made and not anew and stage in entries([stage]):
        try:
            pull(made, remote, say, seconds=max(0.0, deadline - time.monotonic()))
        except RemoteError as err:
            say(f"{stage} can't go on from what it made last: {err}")


def share(stage: str, remote: str, say: Callable[[str], None], *, seconds: float) -> None:
    """Push what a stage made, and the data sets that it read.

    Raises:
        AwayError: the remote does not take it now; RemoteError: there is none.
    """
    check_remote(remote)
    targets = [stage, *parts_of(stage).sources]
    ended = run_dvc(["push", "--remote", remote, *targets], say, seconds=seconds)
    if not ended.ok:
        raise AwayError(f"{stage} could not be pushed to the DVC remote {remote!r}{_why(ended, seconds)}")


def is_shared(remote: str) -> bool:
    """Whether the remote is known to have all that `dvc.lock` and the `.dvc` files name."""
    return run_dvc(["status", "--cloud", "--remote", remote, "--quiet"], lambda line: None).ok


def pull(
    targets: Sequence[str], remote: str, say: Callable[[str], None], *, seconds: float, replace: bool = False
) -> None:
    """Bring outputs and data to the version that `dvc.lock` and the `.dvc` files have, from DVC's cache or a remote.

    Args:
        targets: paths, or stages.
        remote: a DVC remote of this checkout.
        say: told each line that DVC prints.
        seconds: that it may take.
        replace: files that are here in another version, too, even if DVC's cache does not have them.
    Raises:
        AwayError: the remote does not answer; RemoteError: there is none, or it lacks a target.
    """
    check_remote(remote)
    ended = run_dvc(["pull", "--remote", remote, *(["--force"] if replace else []), *targets], say, seconds=seconds)
    if ended.ok:
        return
    said = f"{', '.join(targets)} could not be pulled from the DVC remote {remote!r}{_why(ended, seconds)}"
    if any(sign in line for line in ended.lines for sign in _MISSING):
        raise RemoteError(f"{said}\nwhere these were made, `dvc push --remote {remote}` brings them there")
    raise AwayError(said)


def _why(ended: Ended, seconds: float) -> str:
    lines = "\n".join(ended.lines[-_SAID:])
    return (f" within {seconds / 3600:g} h:\n" if ended.late else f" (exit code {ended.code}):\n") + lines
