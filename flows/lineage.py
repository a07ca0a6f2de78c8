"""The lineage commit: what a retraining made, as a commit on a branch of its own.

`git checkout` of it, `dvc pull` where a remote is set, and `dvc repro` find everything as the run left it. A commit has
the tree of HEAD, which is the code that ran, with the versions and metrics of now: `params.yaml`, `dvc.lock`, `.dvc`
files and every output that git keeps. Nothing else of the repository is touched: not HEAD, not the index, not a file.
The branch is not pushed; with `flows.remote`, the data behind it has been.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.checkout import LOCK, code_paths, is_current, kept_by_git
from qualivision.errors import QualiVisionError
from qualivision.settings import PARAMS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHOWN = 5
_FALLBACK: Final = {"NAME": "QualiVision", "EMAIL": "qualivision@localhost"}


class LineageError(QualiVisionError):
    """A branch on which nothing can be committed: says why and the way out."""


def check_branch(branch: str) -> None:
    """Look whether a run can commit on a branch, before it has worked for hours.

    Raises:
        LineageError: this is no git checkout, or one without a commit; the branch has no name that git takes, or it is
            checked out somewhere, where a commit from outside would look like a change.
    """
    if not _answer("rev-parse", "--verify", "--quiet", "HEAD^{commit}"):
        raise _refused(branch, f"{Path.cwd()} is no git checkout with a commit; make it one, or commit nothing")
    if not _answer("check-ref-format", "--branch", branch):
        raise _refused(branch, "git takes no branch of this name")
    if where := _answer("for-each-ref", "--format=%(worktreepath)", f"refs/heads/{branch}"):
        raise _refused(branch, f"it is checked out in {where}; name a branch that is not")


def changed_code() -> list[str]:
    """Files that differ from HEAD, or that stages read and git does not know: a commit would not tell what ran."""
    changed = _git("diff", "HEAD", "--name-only", "--relative", "-z").split("\0")
    unknown = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *code_paths()).split("\0")
    return sorted({*filter(None, changed), *filter(None, unknown)} - set(_files()))


def commit(branch: str, message: str) -> str:
    """Commit what is here now, if the branch does not have it yet; returns what was done, or why it was not.

    Args:
        branch: made from HEAD where there is none.
        message: of the commit.
    Raises:
        LineageError: see `check_branch`; or git refuses.
    """
    check_branch(branch)
    if changed := changed_code():
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        are = "are" if len(changed) > 1 else "is"
        return f"not committed on {branch}: {', '.join(changed[:_SHOWN])}{more} {are} changed and uncommitted"
    if not is_current():
        return f"not committed on {branch}: data, code or settings were changed meanwhile (`dvc status` says which)"
    reference, head = f"refs/heads/{branch}", _git("rev-parse", "HEAD")
    tree = _tree(head)
    while True:
        tip = _answer("rev-parse", "--verify", "--quiet", reference)
        if tip and not _git("diff", "--name-only", "--relative", tip, tree, "--", *_files()):
            return f"{branch} has it already, as {tip[:10]}"
        parents = [tip] if tip and _answer("merge-base", tip, head) == head else list(filter(None, [tip, head]))
        options = [part for parent in parents for part in ("-p", parent)]
        made = _git("commit-tree", tree, *options, "-F", "-", said=message, variables=_identity())
        try:
            _git("update-ref", "-m", "retrain", reference, made, tip)
            return f"committed on {branch} as {made[:10]}"
        except LineageError:
            if _answer("rev-parse", "--verify", "--quiet", reference) == tip:  # else another run was faster
                raise


def _files() -> list[str]:
    return sorted({str(PARAMS_FILE), str(LOCK), *kept_by_git()})


def _tree(head: str) -> str:
    """The tree of a commit, with what is here now of the files that are committed."""
    prefix = _git("rev-parse", "--show-prefix")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        _git("read-tree", head, variables=index)
        for path in _files():
            blob = _git("hash-object", "-w", "--", path)
            _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{path}", variables=index)
        return _git("write-tree", variables=index)


def _identity() -> dict[str, str]:
    """Who commits, where neither git's configuration nor the environment says it."""
    missing = {what: value for what, value in _FALLBACK.items() if not _answer("config", f"user.{what.lower()}")}
    names = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in missing.items()}
    return {name: value for name, value in names.items() if not os.environ.get(name)}


def _refused(branch: str, why: str) -> LineageError:
    return LineageError(f"flows.commit_branch: {branch!r} of params.yaml: {why}")


def _answer(*arguments: str) -> str:
    """What git says, or nothing where it refuses."""
    done = _run(arguments)
    return "" if done.returncode else done.stdout.strip()


def _git(*arguments: str, said: str = "", variables: Mapping[str, str] | None = None) -> str:
    done = _run(arguments, said, variables)
    if done.returncode:
        raise LineageError(f"`git {' '.join(arguments)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def _run(
    arguments: Sequence[str], said: str = "", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", **(variables or {})}
    try:
        return subprocess.run(["git", *arguments], input=said, capture_output=True, text=True, env=environment)
    except FileNotFoundError as err:
        raise LineageError("git: no such program, which flows.commit_branch of params.yaml needs") from err
