"""A checkout as DVC has it: commands, which take turns; what a stage reads and makes; the entries of `dvc.lock`.

Owns what flows know of DVC, which stages there are excepted. Everything is about the working folder.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.commands import Ended, run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

LOCK: Final = Path("dvc.lock")
STAGES: Final = Path("dvc.yaml")
BUSY: Final = "is busy"
BUSY_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class Parts:
    """What a stage is made of; all paths are relative to the checkout.

    Attributes:
        inputs: what it reads of data sets and of other stages: DVC's cache has it.
        sources: the `.dvc` files of the data sets among these.
        makers: the stages that make the others.
        code: everything else that it reads, with the hash that DVC would record; "" for what is not there. `dvc.yaml`
            is one of them.
        outputs: what it makes and DVC's cache keeps.
        files: what it makes that git keeps (`cache: false`).
    """

    inputs: tuple[str, ...]
    sources: tuple[str, ...]
    makers: tuple[str, ...]
    code: Mapping[str, str]
    outputs: tuple[str, ...]
    files: tuple[str, ...]


def parts_of(stage: str) -> Parts:
    """What a stage is made of, by `dvc.yaml` and by the files as they are now."""
    from dvc.dependency.param import ParamsDependency

    inputs, sources, makers = [], set(), set()
    code = {str(STAGES): hash_of_stages()}
    with _locked() as repo:
        (found,) = repo.stage.collect(stage)
        kept = [out for out in repo.index.outs if out.use_cache]
        for dep in found.deps:
            if isinstance(dep, ParamsDependency):
                continue
            holders, held = _outputs_around(dep, kept)
            if owners := [out.stage for out in holders or held]:
                inputs += [dep.def_path] if holders else [out.def_path for out in held]
                sources |= {owner.relpath for owner in owners if owner.is_data_source}
                makers |= {owner.addressing for owner in owners if not owner.is_data_source}
            else:
                code[dep.def_path] = dep.get_hash().value if dep.exists else ""
        outputs = tuple(out.def_path for out in found.outs if out.use_cache)
        files = tuple(out.def_path for out in found.outs if not out.use_cache)
    return Parts(tuple(inputs), tuple(sorted(sources)), tuple(sorted(makers)), code, outputs, files)


def hash_of_stages() -> str:
    """The hash of `dvc.yaml`."""
    return hashlib.md5(STAGES.read_bytes(), usedforsecurity=False).hexdigest()


def kept_by_git() -> list[str]:
    """The outputs of all stages that git keeps (`cache: false`), and the `.dvc` files."""
    with _locked() as repo:
        outs = list(repo.index.outs)
        files = {out.def_path for out in outs if not out.use_cache}
        return sorted(files | {out.stage.relpath for out in outs if out.stage.is_data_source})


def code_paths() -> list[str]:
    """The files and folders that stages read and that neither a data set nor another stage makes."""
    from dvc.dependency.param import ParamsDependency

    with _locked() as repo:
        made = list(repo.index.outs)
        deps = [dep for dep in repo.index.deps if not isinstance(dep, ParamsDependency)]
        return sorted({dep.def_path for dep in deps if not any(_outputs_around(dep, made))})


def _outputs_around(dep: Any, outputs: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """The outputs that a dependency is or lies in; and those within it: several stages may put theirs in one folder,
    which DVC itself knows nothing of."""
    holders = [out for out in outputs if out.fs.isin_or_eq(dep.fs_path, out.fs_path)]
    return holders, [out for out in outputs if out.fs.isin(out.fs_path, dep.fs_path)]


def entries(names: Iterable[str]) -> dict[str, Any]:
    """The entries that `dvc.lock` has for some stages."""
    from dvc.utils.serialize import load_yaml

    with _locked():  # DVC rewrites the file in place
        stages = load_yaml(LOCK).get("stages", {}) if LOCK.exists() else {}
    return {name: stages[name] for name in names if name in stages}


def put_entries(changed: Mapping[str, Any], *, keep: Iterable[str] = ()) -> None:
    """Write entries of stages into `dvc.lock`, beside what other commands write there.

    Args:
        changed: by the stage's name.
        keep: those that are left as they are where there is one already.
    """
    from dvc.utils.serialize import modify_yaml

    with _locked(), modify_yaml(str(LOCK)) as lock:
        if "stages" not in lock:
            lock |= {"schema": "2.0", "stages": {}}
        there = set(lock["stages"])
        lock["stages"].update({name: entry for name, entry in changed.items() if name not in there.intersection(keep)})


def remotes() -> dict[str, str]:
    """The DVC remotes of the checkout: name and address, the path of a folder in full."""
    with _locked() as repo:
        return {name: str(how.get("url", "")) for name, how in repo.config["remote"].items()}


def is_current(stage: str = "") -> bool:
    """Whether a stage is as `dvc.lock` has it, its outputs included; without a name all stages and the data set."""
    return run_command(["dvc", "--wait-for-lock", "status", "--quiet", *filter(None, [stage])], lambda line: None).ok


def run_dvc(arguments: list[str], say: Callable[[str], None], *, seconds: float | None = None) -> Ended:
    """Run a command of DVC to its end. While another one has the stage or the repository, it waits.

    Args:
        arguments: after `dvc`.
        say: told each line as it comes.
        seconds: that it may take, the waiting included; None for no limit.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        # Pushes of other stages hold DVC's lock for as long as they take.
        ended = run_command(["dvc", "--wait-for-lock", *arguments], say, seconds=left)
        if ended.ok or ended.late or not any(BUSY in line for line in ended.lines):
            return ended
        say("another `dvc` has the stage; waiting")
        time.sleep(BUSY_WAIT_SECONDS)


@contextmanager
def _locked() -> Iterator[Any]:
    """DVC's own object, under the lock that every command of DVC takes while it reads or writes `dvc.lock`."""
    from dvc.repo import Repo, lock_repo

    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        yield repo
