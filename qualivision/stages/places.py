"""Where the pipeline keeps things, relative to the folder of `dvc.yaml`; the same paths stand there."""

from __future__ import annotations

from pathlib import Path

from qualivision.settings import ENSEMBLE

DATA = Path("data")
REPORTS = Path("reports")


def frames_dir(model: str) -> Path:
    """The frame cache of a model."""
    return Path("cache/frames") / model


def quarantine_file(model: str) -> Path:
    """The videos that the last run of `frames` could not use, with their causes."""
    return REPORTS / f"quarantine-{model}.json"


def prompts_dir(model: str) -> Path:
    """The prompt cache of a model."""
    return Path("cache/prompts") / model


def stems_dir(model: str) -> Path:
    """The stem cache of a model."""
    return Path("cache/stems") / model


def checkpoint_dir(model: str) -> Path:
    """The checkpoint of a model."""
    return Path("checkpoints") / model


def member_dir(model: str) -> Path:
    """A model as a member of the ensemble: a copy of its checkpoint, and what it says of val and test."""
    return checkpoint_dir(ENSEMBLE) / "members" / model  # as `training.checkpoint` puts it, whose import takes seconds


def report_dir(model: str) -> Path:
    """The evaluation of a model."""
    return REPORTS / model
