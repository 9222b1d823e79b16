"""What one wait knows of its session: which one it is, what callouts told of it, and what polls prove.

Nothing here ends a wait; ``wait`` decides that from what is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.protocol.attribution import Attribution, of_another
from airflow_mediation_provider.protocol.binding import CLOCK_SKEW, Binding
from airflow_mediation_provider.protocol.condition import Outcome, Verdict, judge
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.story import Story
from airflow_mediation_provider.protocol.times import in_words, to_json, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set
    from datetime import datetime, timedelta

    from airflow_mediation_provider.protocol.condition import SessionCondition
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.protocol.reading import PollReading, PollVerdict
    from airflow_mediation_provider.protocol.transition import Source


@dataclass(frozen=True, slots=True)
class Told:
    """What callouts just told of the awaited session.

    :param state: the session
    :param verdict: what it means for the condition
    """

    state: SessionState
    verdict: Verdict


class SessionKnowledge:
    """The memory of one wait about its session.

    :param condition: what is waited for
    :param created_at: when the wait began
    :param started_at: when the session started, by Zuora's clock; with the session id unknown, that it was called for
    :param run_status: the session's status in the run reply
    :param baseline: the status of the meter version just before the run call, or at the sensor's first look
    :param exclusive: the user's promise that nothing else runs the meter meanwhile
    :param settle: how long a reading may be stale
    :param polls_only: no session is waited for, but the meter's status
    """

    __slots__ = ("_attribution", "_binding", "_condition", "_created_at", "_started_at", "_told", "story")

    def __init__(
        self,
        condition: SessionCondition,
        *,
        created_at: datetime,
        started_at: datetime | None,
        run_status: str | None = None,
        baseline: str | None = None,
        exclusive: bool,
        settle: timedelta,
        polls_only: bool,
    ) -> None:
        self._condition = condition
        self._created_at = created_at
        self._started_at = started_at
        self._attribution = Attribution(
            condition,
            since=self._anchor(),
            begun=condition.session_id is not None or started_at is not None,
            baseline=baseline,
            exclusive=exclusive,
            settle=settle,
            started_at=started_at,
        )
        self._binding: Binding | None = None
        if condition.session_id is None and not polls_only:
            since = condition.since or started_at or created_at
            self._binding = Binding(condition, earliest=since, called_at=None if started_at is None else since)
        # What callouts told of the session last: a feed says the same again and again.
        self._told: list[Any] | None = None
        self.story = Story(run_status, None if run_status is None else min(started_at or created_at, created_at))

    @property
    def session_id(self) -> str | None:
        """The named session, or the one that callouts showed to be the awaited one."""
        return self._condition.session_id or (self._binding.session_id if self._binding else None)

    @property
    def named(self) -> bool:
        """Whether it is known from the begin which session, if any, is waited for."""
        return self._binding is None

    @property
    def earliest(self) -> datetime:
        """From when on sessions of the meter matter, by their start."""
        if self._binding is not None and self._binding.earliest is not None:
            return self._binding.earliest
        return min(self._created_at, self._attribution.started_at or self._created_at)

    @property
    def told(self) -> bool:
        """Whether anything is known exactly of the session."""
        return self._told is not None

    @property
    def begun(self) -> bool:
        """Whether the session is known to have begun."""
        return self._attribution.bound

    @property
    def doubt(self) -> str:
        """What was seen of another session of the meter, in words; empty where nothing was."""
        return self._attribution.doubt

    @property
    def shown(self) -> str | None:
        """The status that the meter was last read in."""
        return self.story.read

    @property
    def settle(self) -> timedelta:
        """How long a reading may be stale."""
        return self._attribution.settle

    def observe(self, reading: PollReading, others: Sequence[SessionState]) -> PollVerdict:
        """Weigh a reading against all that is known.

        :param reading: the status, and when it was asked for
        :param others: what callouts tell of the meter's sessions
        """
        self.story.saw(reading.status, reading.read_at)
        return self._attribution.observe(reading, others)

    def explained(self, states: Sequence[SessionState], status: str, at: datetime) -> str:
        """Return why a reading that was taken for the session's own may be another one's; empty where nothing says so.

        :param states: what callouts tell of the meter's sessions since
        :param status: what was read
        :param at: when
        """
        other = self._attribution.other(states, status, at)
        return of_another(other) if other else ""

    def beside(self, states: Sequence[SessionState]) -> list[str]:
        """Return the sessions that seem to be live beside the awaited one.

        :param states: what callouts tell of the meter's sessions
        """
        return self._attribution.beside(states)

    def may_bind(self, told: Set[str], first: datetime, last: datetime) -> bool:
        """Say cheaply whether ``bind`` or ``hear`` may find anything new in some states.

        :param told: their sessions
        :param first: the earliest of their starts
        :param last: the latest
        """
        if self._binding is None:
            return True
        bound, start = self._binding.session_id, self._binding.start
        return last >= self.earliest if start is None else bound in told or first <= start

    def bind(self, states: Sequence[SessionState]) -> list[str]:
        """Find the session that is waited for where none is named, and return what to log."""
        if self._binding is None:
            return []
        before = self._binding.session_id
        self._binding.take(states)
        session_id = self._binding.session_id
        if session_id == before:
            return []
        state = next((s for s in states if s.session_id == session_id), None)
        heard_at = self._anchor() if state is None else to_utc("observed_at", state.first_observed_at)
        self._attribution = self._attribution.of_session(session_id, heard_at)
        self._told = None
        self.story.forget()
        if session_id is None:
            return [f"session {before} is not the one that is waited for"]
        if before is not None:
            return [f"session {session_id} comes first, and not {before}: waiting for that one"]
        return [f"waiting for session {session_id}, the first that is known"]

    def hear(self, states: Sequence[SessionState]) -> tuple[list[str], Told | None]:
        """Take what callouts tell of the awaited session, and return what to log, and what is new.

        :param states: sessions of any meter, each as the fold of its transitions
        """
        session_id, meter_id = self.session_id, self._condition.meter_id
        state = next((s for s in states if s.session_id == session_id and s.meter_id == meter_id), None)
        if state is None:
            return [], None
        told = [to_json(state.last_observed_at), state.status, state.previous_status, state.conflict, state.ambiguous]
        if told == self._told:
            return [], None
        self._told = told
        self._attribution.learn(state)
        verdict = judge(self._condition, state)
        lines: list[str] = []
        if not state.ambiguous and state.status != self.story.status:
            since = to_utc("observed_at", state.observed_at)
            lines.append(self.story.change(state.status, since, self.subject(), state.source))
        if verdict.outcome is Outcome.WAITING:
            lines += self.story.hold_back(verdict.reason)
        return lines, Told(state, verdict)

    def opening(self, conn_id: str) -> str:
        """Return one line that says what is waited for, and what is known of it already.

        :param conn_id: the Airflow connection
        """
        condition, story = self._condition, self.story
        who = self.subject()
        if self.session_id is None:
            meter = f"meter {condition.meter_id}"
            who = meter if self.named else f"the first session of {meter} from {in_words(self.earliest)} on"
        line = f"waiting for {who}, over connection {conn_id!r}, to be {condition.in_words()}"
        if condition.until is not None:
            line += f", until {in_words(condition.until)}"
        if story.status is not None and story.status_since is not None:
            line += f"; it is {story.status} since {in_words(story.status_since)}"
        return line

    def subject(self) -> str:
        """Return the session in words."""
        session_id = self.session_id
        kind = "DEBUG session" if self._condition.run_type is RunType.DEBUG else "session"
        meter = f"of meter {self._condition.meter_id}"
        return f"{kind} {session_id} {meter}" if session_id else f"the {kind} {meter}"

    def transition(self, status: str, at: datetime, source: Source) -> SessionTransition:
        """Return what is known of the session where no callout told its status.

        :param status: its status
        :param at: when that was learned
        :param source: how
        """
        return SessionTransition(
            meter_id=self._condition.meter_id,
            session_id=self.session_id,
            run_type=self._condition.run_type,
            status=status,
            started_at=self._attribution.started_at,
            observed_at=at,
            source=source,
        )

    def _anchor(self) -> datetime:
        """Return by when the session began at the latest; where none has begun, the earliest start of the one awaited.

        A run reply's start is by Zuora's clock. Right after the run call our own clock knows better, and much later the
        difference of the clocks does not matter any more.
        """
        if self._started_at is not None:
            return min(self._created_at, self._started_at + CLOCK_SKEW)
        return max(self._created_at, self._condition.since or self._created_at)

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as plain JSON, without the condition and the times of the begin."""
        return {
            "attribution": self._attribution.to_dict(),
            **self.story.to_dict(),
            "sessions": self._binding.to_list() if self._binding else [],
            "told": self._told,
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Take back what ``to_dict`` gave; what is missing is as at the wait's begin.

        :raises ValueError: a time is no instant
        """
        if data.get("attribution"):
            self._attribution = Attribution.from_dict(self._condition, data["attribution"])
        self.story = Story.from_dict(data)
        if self._binding is not None:
            self._binding.load(data.get("sessions") or ())
        told = data.get("told")
        self._told = list(told) if told else None
