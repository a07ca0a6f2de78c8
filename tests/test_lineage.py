"""The lineage commit, on a tiny repository: what is on the branch, and that nothing else has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import lineage
from flows.lineage import LineageError, check_branch, commit

STAGES = """
stages:
  count:
    cmd: wc -l < data > metrics.json
    deps: [data, code]
    metrics: [{metrics.json: {cache: false}}]
"""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def git(*arguments: str, folder: Path = Path()) -> str:
    return run(folder, "git", *arguments)


def repro(folder: Path = Path()) -> None:
    run(folder, sys.executable, "-m", "dvc", "repro", "--quiet")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    (folder / "code").mkdir()
    for path, text in {"data": "1\n", "code/code.py": "pass\n", "notes.txt": "-\n", "params.yaml": "{}\n"}.items():
        (folder / path).write_text(text)
    (folder / "dvc.yaml").write_text(STAGES)
    git("init", "--quiet", "--initial-branch", "main", folder=folder)
    run(folder, sys.executable, "-m", "dvc", "init", "--quiet")
    run(folder, sys.executable, "-m", "dvc", "add", "--quiet", "data")
    git("config", "user.name", "somebody", folder=folder)
    git("config", "user.email", "somebody@localhost", folder=folder)
    git("add", ".", folder=folder)
    git("commit", "--quiet", "--message", "all of it", folder=folder)
    repro(folder)
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A checkout whose stage was made since HEAD."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def files(revision: str) -> list[str]:
    return git("ls-tree", "-r", "--name-only", revision).split()


def test_versions_and_metrics_are_committed_and_nothing_else_is_touched(here):
    git("add", "dvc.lock")  # staged, and to stay so
    before = git("status", "--porcelain"), git("rev-parse", "HEAD")
    index = (here / ".git" / "index").read_bytes()
    assert commit("nightly", "Retraining\n\nmodel: 1\n").startswith("committed on nightly as ")
    assert (here / ".git" / "index").read_bytes() == index
    assert (git("status", "--porcelain"), git("rev-parse", "HEAD")) == before
    assert set(files("nightly")) - set(files("HEAD")) == {"dvc.lock", "metrics.json"}
    assert git("show", "nightly:metrics.json") == "1"
    assert git("log", "--format=%an %s %b", "main..nightly") == "somebody Retraining model: 1"


def test_what_the_branch_has_already_is_not_committed_again(here):
    commit("nightly", "one")
    tip = git("rev-parse", "nightly")
    assert commit("nightly", "two") == f"nightly has it already, as {tip[:10]}"
    assert git("rev-parse", "nightly") == tip


def test_a_later_run_goes_on_top_of_the_branch_and_joins_the_code_that_ran(here):
    commit("nightly", "one")
    first = git("rev-parse", "nightly")
    (here / "data").write_text("1\n2\n")
    repro()
    commit("nightly", "two")
    assert git("log", "-1", "--format=%P", "nightly") == first and git("show", "nightly:metrics.json") == "2"
    second = git("rev-parse", "nightly")
    (here / "code" / "code.py").write_text("changed = True\n")
    git("commit", "--quiet", "--message", "code", "--", "code")
    repro()
    commit("nightly", "three")
    assert git("log", "-1", "--format=%P", "nightly") == f"{second} {git('rev-parse', 'main')}"
    assert git("show", "nightly:code/code.py") == "changed = True"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"code/code.py": "changed = True\n"}, "code/code.py is"),
        ({"code/more.py": "pass\n"}, "code/more.py is"),  # which git does not know
        ({"code/code.py": "", "notes.txt": "", "code/more.py": ""}, "code/code.py, code/more.py, notes.txt are"),
    ],
)
def test_code_that_is_not_committed_is_named_and_no_commit_pretends_to_have_it(here, changed, named):
    for path, text in changed.items():
        (here / path).write_text(text)
    repro()
    assert commit("nightly", "one") == f"not committed on nightly: {named} changed and uncommitted"
    assert git("branch", "--list", "nightly") == ""


def test_a_file_that_no_stage_reads_does_not_matter_and_one_that_changed_since_does(here):
    (here / "unknown.txt").write_text("-\n")
    (here / "data").write_text("1\n2\n")
    assert commit("nightly", "one").startswith("not committed on nightly: data, code or settings were changed")
    repro()
    assert commit("nightly", "one").startswith("committed")


def test_another_run_that_was_faster_is_built_upon(here, monkeypatch):
    plain = lineage._git
    commit("nightly", "one")
    (here / "data").write_text("1\n2\n")
    repro()
    faster: list[str] = []

    def race(*arguments, **how):
        if arguments[0] == "update-ref" and not faster:
            faster.append(git("commit-tree", "nightly^{tree}", "-p", "nightly", "-m", "faster"))
            git("update-ref", "refs/heads/nightly", faster[0])
        return plain(*arguments, **how)

    monkeypatch.setattr(lineage, "_git", race)
    assert commit("nightly", "two").startswith("committed")
    assert git("log", "-1", "--format=%P", "nightly") == faster[0]


def test_without_a_name_of_its_own_git_commits_as_the_project(here, monkeypatch, tmp_path):
    git("config", "--unset", "user.name")
    git("config", "--unset", "user.email")
    for name in list(os.environ):
        if name.startswith(("GIT_AUTHOR_", "GIT_COMMITTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "none"))
    commit("nightly", "one")
    assert git("log", "-1", "--format=%an <%ae> %cn", "nightly") == "QualiVision <qualivision@localhost> QualiVision"
    assert subprocess.run(["git", "config", "user.name"], capture_output=True).stdout == b""


def test_a_branch_that_nothing_can_be_committed_on_is_refused_before_the_work(here, tmp_path, monkeypatch):
    with pytest.raises(LineageError, match=rf"commit_branch: 'main' of params.yaml: it is checked out in {here}; name"):
        check_branch("main")
    with pytest.raises(LineageError, match=r"commit_branch: 'a b' of params.yaml: git takes no branch of this name"):
        check_branch("a b")
    check_branch("night/ly")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LineageError, match=rf"'nightly' of params.yaml: {tmp_path} is no git checkout with a commit"):
        check_branch("nightly")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LineageError, match=r"git: no such program, which flows\.commit_branch"):
        check_branch("nightly")
