"""The model registry in MLflow: versions, what was decided of them, and which of them is at work.

Aliases: `challenger` is what was registered last, `champion` what scores, `previous` the champion before it. A version
carries what it came from, the verdict of the gate and its history as tags, and its card as description. It carries the
hash of its files too, and is refused when they are not those any more.

What changes which model is at work moves one alias, last of all that could fail: stopped at any point, the old champion
is still there.
"""

from __future__ import annotations

import getpass
import json
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qualivision import tracking
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from qualivision.evaluation.verdict import Verdict
    from qualivision.settings import RegistrySettings

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
HOW_TO_GET_ONE: Final = (
    "there is no champion yet: `make demo` trains and promotes one, or `dvc repro` and then "
    "`qualivision register --promote`; or name a checkpoint folder with --model"
)
PASSED: Final = "passed"
REFUSED: Final = "refused"
ROLLED_BACK: Final = "rolled back"
OVERRIDDEN: Final = "overridden"

FILES_TAG: Final = "qualivision.files"
VERDICT_TAG: Final = "qualivision.verdict"
"""`passed` or `refused`, and then `overridden` or `rolled back` by a person; none before the gate."""
GATE_TAG: Final = "qualivision.gate"
"""The verdict with its tables, as JSON."""
REPLACED_TAG: Final = "qualivision.replaced"
"""Which version was champion before this one."""
HISTORY_TAG: Final = "qualivision.history"
"""What was done with a version: a JSON list of events."""

APPROVAL_TAG: Final = "qualivision.approval"
"""Whether a person was asked to promote it, and the answer, as JSON (`approval.py`)."""

_GATE_TITLE: Final = "## The gate"


class RegistryError(QualiVisionError):
    """Something that the registry won't do: says why and the way out."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    new: bool
    """False when this very checkpoint had been registered before"""

    @property
    def uri(self) -> str:
        """The MLflow URI of the version."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Event:
    """Something that was done with a version: what, when (UTC), by whom, and why."""

    what: str
    when: str
    who: str
    why: str


@dataclass(frozen=True)
class Entry:
    """A version as `qualivision models` lists it."""

    version: int
    model: str
    aliases: tuple[str, ...]
    scores: dict[str, float | None]
    """VQualA of each dimension on the test split, as it was registered"""
    verdict: str
    approval: str
    """What became of the question whether to promote it: `waiting`, `approved`, `rejected`, `lapsed`, `withdrawn`; or
    empty"""
    registered: datetime
    history: tuple[Event, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"registered": self.registered.isoformat()}


def register(
    checkpoint: Path, report: Path, settings: RegistrySettings, *, data: Path = Path("data"), who: str | None = None
) -> Registered:
    """Put an evaluated checkpoint into the registry, as challenger. A checkpoint that is there already stays as it is.

    Args:
        checkpoint: its folder.
        report: the folder of its evaluation; its `metrics.json` and pictures go on the model's card.
        settings: the `registry` section.
        data: the data folder, for the card.
        who: registers it; by default the user of this process.
    Raises:
        PackagingError: no evaluation, that of another checkpoint, or a file that is none.
        CheckpointError: not a checkpoint.
    """
    from qualivision import packaging
    from qualivision.model_card import DESCRIPTION_CHARACTERS
    from qualivision.training.checkpoint import checkpoint_id, kind_of, members_of

    members, identity = members_of(checkpoint), checkpoint_id(checkpoint)
    kind = kind_of(members)
    metrics = packaging.read_metrics(report / "metrics.json", identity)
    store = tracking.client()
    for found in _versions(store, settings.name):
        if found.tags.get(tracking.CHECKPOINT_TAG) == identity:
            _finish_registering(store, found, settings)
            return Registered(settings.name, int(found.version), new=False)
    with tracking.checkpoint_run(kind, identity, name=f"register-{kind}") as run_id:
        done = packaging.package(checkpoint, members, identity, report, metrics, data)
    if not _exists(store, settings.name):
        store.create_registered_model(settings.name, description="Judges AI-generated video against its prompt.")
    version = store.create_model_version(
        settings.name,
        done.uri,
        run_id=run_id,
        model_id=done.model_id,  # an MLflow server takes no version without it
        description=done.description[:DESCRIPTION_CHARACTERS],
        tags={
            tracking.CHECKPOINT_TAG: identity,
            FILES_TAG: done.files,
            HISTORY_TAG: _history((), _event("registered", who, "")),
            "qualivision.model": kind,
            "qualivision.members": ",".join(member.name for member in members),
            "qualivision.frames": ",".join(str(member.card.frames) for member in members),
            "qualivision.dimensions": ",".join(DIMENSIONS),
            "qualivision.base": ",".join(member.card.base for member in members),
            "qualivision.base_hash": ",".join(member.card.base_hash for member in members),
            "qualivision.run": run_id,
            "qualivision.scores": json.dumps({name: metrics[name]["VQualA"] for name in DIMENSIONS}),
            **{f"qualivision.{name}": value for name, value in done.lineage.items()},
        },
    )
    store.set_registered_model_alias(settings.name, CHALLENGER, version.version)
    return Registered(settings.name, int(version.version), new=True)


def _finish_registering(store: MlflowClient, found: ModelVersion, settings: RegistrySettings) -> None:
    """Point `challenger` at a version whose registration was stopped just before."""
    if len(_events(found)) > 1:
        return
    newer = version_of(CHALLENGER, settings) or 0
    if int(found.version) > newer:
        store.set_registered_model_alias(settings.name, CHALLENGER, found.version)


def record_verdict(version: int, verdict: Verdict, settings: RegistrySettings) -> None:
    """Store what the gate said on the version, whether it passed or not: as tags, and below its card."""
    from qualivision.model_card import DESCRIPTION_CHARACTERS

    store = tracking.client()
    name, number = settings.name, str(version)
    found = _get(store, settings, version)
    said = f"\n\n{_GATE_TITLE}\n\n{verdict.as_markdown()}"[:DESCRIPTION_CHARACTERS]
    card = (found.description or "").partition(_GATE_TITLE)[0].rstrip()
    store.update_model_version(name, number, card[: DESCRIPTION_CHARACTERS - len(said)] + said)
    store.set_model_version_tag(name, number, GATE_TAG, json.dumps(verdict.as_dict()))
    if found.tags.get(VERDICT_TAG) != ROLLED_BACK:  # what a person took back, no gate gives back
        store.set_model_version_tag(name, number, VERDICT_TAG, PASSED if verdict.passed else REFUSED)
    _remember(store, settings, found, _event("judged", None, verdict.line))


def verdict_of(version: int, settings: RegistrySettings) -> Verdict | None:
    """The last verdict on a version; None before the gate. Raises RegistryError when there is no such version."""
    from qualivision.evaluation.verdict import Verdict

    found = _get(tracking.client(), settings, version)
    try:
        return Verdict.from_dict(json.loads(found.tags[GATE_TAG])) if GATE_TAG in found.tags else None
    except (ValueError, TypeError, KeyError) as err:
        uri = f"models:/{settings.name}/{version}"
        raise RegistryError(f"{uri}: its verdict can't be read; run `qualivision gate {version}` again") from err


def version_of(alias: str, settings: RegistrySettings) -> int | None:
    """Which version an alias means; None when it means none."""
    from mlflow.exceptions import MlflowException

    try:
        return int(tracking.client().get_model_version_by_alias(settings.name, alias).version)
    except MlflowException as err:
        if err.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        if tracking.is_away(err):
            raise
        raise RegistryError(f"the registry can't be asked: {str(err).splitlines()[0]}") from err


def challenger(settings: RegistrySettings) -> int:
    """The version that was registered last and not promoted. Raises RegistryError when there is none."""
    version = version_of(CHALLENGER, settings)
    if version is None:
        raise RegistryError(
            f"models:/{settings.name}@{CHALLENGER}: there is no challenger; `qualivision register` makes one, "
            "`qualivision models` lists the versions"
        )
    return version


def promote(
    version: int, settings: RegistrySettings, *, override: str | None = None, who: str | None = None, why: str = ""
) -> None:
    """Make a version the champion.

    Args:
        version: which.
        settings: the `registry` section.
        override: promotes what did not pass, for this reason, which is recorded.
        who: approves it; by default the user of this process.
        why: recorded with the approval.
    Raises:
        RegistryError: no such version; or it did not pass the gate against the present champion.
    """
    store = tracking.client()
    found = _get(store, settings, version)
    champion = version_of(CHAMPION, settings)
    if champion == version:
        return
    if override is None:
        _check_verdict(found, champion, settings)
    event = _event("approved", who, why) if override is None else _event("approved against the gate", who, override)
    _remember(store, settings, found, event)
    number = str(version)
    if override is not None:
        store.set_model_version_tag(settings.name, number, VERDICT_TAG, OVERRIDDEN)
    if champion is not None:
        store.set_model_version_tag(settings.name, number, REPLACED_TAG, str(champion))
        store.set_registered_model_alias(settings.name, PREVIOUS, str(champion))
    store.set_registered_model_alias(settings.name, CHAMPION, number)
    if version_of(CHALLENGER, settings) == version:
        store.delete_registered_model_alias(settings.name, CHALLENGER)


def rollback(settings: RegistrySettings, *, why: str, who: str | None = None) -> tuple[int, int]:
    """Give the place back to the champion before; again and again, down to the first.

    Returns:
        The version that was champion, and the one that is.
    Raises:
        RegistryError: there is no champion, or none before it.
    """
    store = tracking.client()
    champion = version_of(CHAMPION, settings)
    if champion is None:
        raise RegistryError(f"models:/{settings.name}@{CHAMPION}: {HOW_TO_GET_ONE}")
    left = _get(store, settings, champion)
    before = version_of(PREVIOUS, settings)
    if before is None or before == champion:  # the latter where a promotion or a rollback was stopped half-way
        before = _replaced(left)
    if before is None:
        raise RegistryError(f"models:/{settings.name}/{champion} is the first champion: there is none to go back to")
    back = _get(store, settings, before)
    _remember(store, settings, left, _event(f"rolled back to {before}", who, why))
    store.set_model_version_tag(settings.name, str(champion), VERDICT_TAG, ROLLED_BACK)
    store.set_registered_model_alias(settings.name, CHAMPION, str(before))
    earlier = _replaced(back)
    if earlier is not None:
        store.set_registered_model_alias(settings.name, PREVIOUS, str(earlier))
    elif version_of(PREVIOUS, settings) is not None:
        store.delete_registered_model_alias(settings.name, PREVIOUS)
    _remember(store, settings, back, _event(f"champion again, for {champion}", who, why))
    return champion, before


def entries(settings: RegistrySettings) -> list[Entry]:
    """All versions, the newest first."""
    store = tracking.client()
    if not _exists(store, settings.name):
        return []
    aliases: dict[int, list[str]] = {}
    for alias, number in store.get_registered_model(settings.name).aliases.items():
        aliases.setdefault(int(number), []).append(alias)
    found = [_entry(version, aliases.get(int(version.version), [])) for version in _versions(store, settings.name)]
    return sorted(found, key=lambda entry: -entry.version)


def fetch(uri: str | None) -> tuple[Path, str]:
    """A registered model's checkpoint folder on this machine, and the version's URI.

    Args:
        uri: an MLflow model URI; None for the champion of the registry that `params.yaml` names.
    Raises:
        ModelNotFoundError: no such model.
        RegistryError: its files are not those that were registered.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from qualivision.packaging import CHECKPOINT_ARTIFACT, folder_hash
    from qualivision.scoring import ModelNotFoundError
    from qualivision.training.checkpoint import has_files

    uri = uri or champion_uri()
    version = _find(tracking.client(), uri)
    resolved = uri if version is None else f"models:/{version.name}/{version.version}"
    try:
        folder = Path(mlflow.artifacts.download_artifacts(resolved))
    except (MlflowException, OSError) as err:
        if tracking.is_away(err):
            raise
        raise ModelNotFoundError(f"{resolved}: its files can't be read: {str(err).splitlines()[0]}") from err
    checkpoint = folder / "artifacts" / CHECKPOINT_ARTIFACT
    if not has_files(checkpoint):
        raise ModelNotFoundError(f"{resolved}: holds no checkpoint of QualiVision")
    if version and folder_hash(folder) != version.tags.get(FILES_TAG):
        raise RegistryError(f"{resolved}: its files are not those that were registered; register the checkpoint again")
    return checkpoint, resolved


def objection(version: int, settings: RegistrySettings) -> str | None:
    """Why `promote` would refuse a version; None where it would not. RegistryError when there is no such version."""
    found = _get(tracking.client(), settings, version)
    try:
        _check_verdict(found, version_of(CHAMPION, settings), settings)
    except RegistryError as err:
        return str(err)
    return None


def needs_gate(version: int, settings: RegistrySettings, data: Path = Path("data")) -> bool:
    """Whether a version was not held against the present champion yet, on the present test rows."""
    from qualivision.cache import file_hash
    from qualivision.labels import labels_path

    verdict = verdict_of(version, settings)
    if verdict is None or not is_current(verdict, version_of(CHAMPION, settings), settings):
        return True
    rows = labels_path(data, "test")
    return rows.exists() and verdict.data != file_hash(rows)


def remember(version: int, settings: RegistrySettings, what: str, *, who: str | None = None, why: str = "") -> None:
    """Add to a version's history. Raises RegistryError when there is no such version.

    Args:
        version: which.
        settings: the `registry` section.
        what: was done.
        who: did it; by default the user of this process.
        why: the reason.
    """
    store = tracking.client()
    _remember(store, settings, _get(store, settings, version), _event(what, who, why))


def tags_of(version: int, settings: RegistrySettings) -> dict[str, str]:
    """All tags of a version. Raises RegistryError when there is no such version."""
    return dict(_get(tracking.client(), settings, version).tags)


def tag(version: int, name: str, value: str, settings: RegistrySettings) -> None:
    """Set a tag of a version."""
    tracking.client().set_model_version_tag(settings.name, str(version), name, value)


def versions_tagged(name: str, settings: RegistrySettings) -> list[int]:
    """The versions that have a tag, the newest first."""
    found = _versions(tracking.client(), settings.name)
    return sorted((int(version.version) for version in found if name in version.tags), reverse=True)


def _check_verdict(found: ModelVersion, champion: int | None, settings: RegistrySettings) -> None:
    """Raises RegistryError unless the version passed the gate against the present champion."""
    version = int(found.version)
    uri = f"models:/{settings.name}/{version}"
    otherwise = 'or promote it all the same with --override "REASON"'
    if found.tags.get(VERDICT_TAG) == ROLLED_BACK:
        why = next((event.why for event in reversed(_events(found)) if event.what.startswith(ROLLED_BACK)), "")
        raise RegistryError(f"{uri}: was rolled back ({why}); train another, {otherwise}")
    verdict = verdict_of(version, settings)
    if verdict is None or not is_current(verdict, champion, settings):
        against = f"models:/{settings.name}/{champion}" if champion else "the no-video baseline"
        raise RegistryError(f"{uri}: was not held against {against}; run `qualivision gate {version}`, {otherwise}")
    if not verdict.passed:
        first, *more = verdict.reasons
        others = f", and {len(more)} more reason{'s' * (len(more) > 1)}" if more else ""
        raise RegistryError(f"{uri}: did not pass the gate: {first}{others}; train it better, {otherwise}")


def is_current(verdict: Verdict, champion: int | None, settings: RegistrySettings) -> bool:
    """Whether a verdict is about the present champion, or about there being none."""
    return verdict.champion == (f"models:/{settings.name}/{champion}" if champion else None)


def champion_uri() -> str:
    """The URI of whatever is champion, in the registry that `params.yaml` names."""
    from qualivision.settings import PARAMS_FILE, load_settings

    name = load_settings().registry.name if PARAMS_FILE.exists() else "qualivision"
    return f"models:/{name}@{CHAMPION}"


def meant(store: MlflowClient, uri: str) -> str:
    """What an alias such as `models:/qualivision@champion` means now, `models:/NAME/VERSION`; reads no files.

    Raises:
        ModelNotFoundError: nothing.
    """
    version = _find(store, uri)
    return uri if version is None else f"models:/{version.name}/{version.version}"


def _find(store: MlflowClient, uri: str) -> ModelVersion | None:
    """As `_resolve`; a version that is not there is a ModelNotFoundError."""
    from mlflow.exceptions import MlflowException

    from qualivision.scoring import ModelNotFoundError

    try:
        return _resolve(store, uri)
    except MlflowException as err:
        if tracking.is_away(err):
            raise
        hint = HOW_TO_GET_ONE if uri.endswith(f"@{CHAMPION}") else str(err).splitlines()[0]
        raise ModelNotFoundError(f"{uri}: {hint}") from err


def _resolve(store: MlflowClient, uri: str) -> ModelVersion | None:
    """The version that a registry URI means now; None for a URI that names no version (`runs:/...`)."""
    if not uri.startswith("models:/"):
        return None
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        return store.get_model_version_by_alias(name, alias)
    name, _, version = name.partition("/")
    return store.get_model_version(name, version) if version.isdigit() else None


def _get(store: MlflowClient, settings: RegistrySettings, version: int) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        return store.get_model_version(settings.name, str(version))
    except MlflowException as err:
        if tracking.is_away(err):
            raise
        raise RegistryError(
            f"models:/{settings.name}/{version}: no such version; `qualivision models` lists them"
        ) from err


def _entry(version: ModelVersion, aliases: list[str]) -> Entry:
    scores: dict[str, Any] = json.loads(version.tags.get("qualivision.scores", "{}"))
    return Entry(
        version=int(version.version),
        model=version.tags.get("qualivision.model", "?"),
        aliases=tuple(sorted(aliases)),
        scores={name: scores.get(name) for name in DIMENSIONS},
        verdict=version.tags.get(VERDICT_TAG, "not judged"),
        approval=json.loads(version.tags.get(APPROVAL_TAG, "{}")).get("state", ""),
        registered=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        history=_events(version),
    )


def _event(what: str, who: str | None, why: str) -> Event:
    return Event(what, datetime.now(UTC).isoformat(timespec="seconds"), who or _user(), why)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container may run as a number that no name belongs to
        return f"unknown@{socket.gethostname()}"


def _events(version: ModelVersion) -> tuple[Event, ...]:
    return tuple(Event(**event) for event in json.loads(version.tags.get(HISTORY_TAG, "[]")))


def _history(events: tuple[Event, ...], new: Event) -> str:
    return json.dumps([vars(event) for event in (*events, new)], ensure_ascii=False)


def _remember(store: MlflowClient, settings: RegistrySettings, version: ModelVersion, event: Event) -> None:
    now = _get(store, settings, int(version.version))
    store.set_model_version_tag(settings.name, version.version, HISTORY_TAG, _history(_events(now), event))


def _replaced(version: ModelVersion) -> int | None:
    number = version.tags.get(REPLACED_TAG, "")
    return int(number) if number.isdigit() else None


def _versions(store: MlflowClient, name: str) -> list[ModelVersion]:
    return list(store.search_model_versions(f"name='{name}'", max_results=10_000))


def _exists(store: MlflowClient, name: str) -> bool:
    return bool(store.search_registered_models(f"name='{name}'"))
