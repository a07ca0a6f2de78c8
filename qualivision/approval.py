"""Whether a challenger that passed the gate is promoted: the question that a person is asked, and the answer.

Owns how both are kept: on the model version, as the tag `qualivision.approval` and in its history, so that whoever
looks at the version sees who was asked, what was answered and why. Does not ask (`flows/approval.py`) or promote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from qualivision import registry

if TYPE_CHECKING:
    from qualivision.settings import RegistrySettings

State = Literal["waiting", "approved", "rejected", "lapsed", "withdrawn"]


@dataclass(frozen=True)
class Question:
    """A question about one version against one champion.

    Attributes:
        version: the challenger.
        against: the champion that it was held against; None where there was none.
        flow_run: the id of the run that asks.
        where: where it can be answered: an address, or the run's name.
        asked, until: when it was asked, and when it lapses (ISO 8601, UTC).
        state: `lapsed` is one that nobody answered in time, `withdrawn` one whose run was cancelled.
        who, why: of the answer.
    """

    version: int
    against: int | None
    flow_run: str
    where: str
    asked: str
    until: str
    state: State = "waiting"
    who: str = ""
    why: str = ""

    @property
    def key(self) -> str:
        """Tells this question from others of the same run."""
        return f"version-{self.version}-against-{self.against or 'nobody'}"

    @property
    def is_late(self) -> bool:
        """Whether its time is over, whoever has noticed that."""
        return datetime.now(UTC) >= datetime.fromisoformat(self.until)

    def __str__(self) -> str:
        if self.state == "waiting":
            return f"waits for an answer until {self.until} ({self.where})"
        if self.state == "lapsed":
            return f"nobody answered until {self.until}"
        by = f" by {self.who}" if self.who else ""
        return f"{self.state}{by}" + (f": {self.why}" if self.why else "")


def ask(
    version: int, against: int | None, settings: RegistrySettings, *, flow_run: str, where: str, hours: float
) -> Question:
    """Record that a person is asked. Raises RegistryError when there is no such version."""
    now = datetime.now(UTC)
    until = now + timedelta(hours=hours)
    question = Question(version, against, flow_run, where, _iso(now), _iso(until))
    _store(question, settings)
    registry.remember(version, settings, "asked for approval", why=f"until {question.until}; {where}")
    return question


def close(
    question: Question,
    state: Literal["approved", "rejected", "lapsed", "withdrawn"],
    settings: RegistrySettings,
    *,
    who: str = "",
    why: str = "",
) -> Question:
    """Record what became of a question; once."""
    closed = replace(question, state=state, who=who, why=why)
    if question_of(question.version, settings) != question:
        return closed  # asked anew since, or closed already
    _store(closed, settings)
    what = {"lapsed": "approval lapsed", "withdrawn": "approval withdrawn"}.get(state, state)
    if state != "approved":  # `registry.promote` records that one
        registry.remember(question.version, settings, what, who=who or None, why=why)
    return closed


def question_of(version: int, settings: RegistrySettings) -> Question | None:
    """The last question about a version. Raises RegistryError when there is no such version."""
    return _read(registry.tags_of(version, settings).get(registry.APPROVAL_TAG))


def asked_by(flow_run: str, settings: RegistrySettings) -> Question | None:
    """The question that a flow run asked and that has no answer yet."""
    for version in registry.versions_tagged(registry.APPROVAL_TAG, settings):
        question = question_of(version, settings)
        if question and question.flow_run == flow_run and question.state == "waiting":
            return question
    return None


def _store(question: Question, settings: RegistrySettings) -> None:
    registry.tag(question.version, registry.APPROVAL_TAG, json.dumps(asdict(question), ensure_ascii=False), settings)


def _read(text: str | None) -> Question | None:
    return Question(**json.loads(text)) if text else None


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
