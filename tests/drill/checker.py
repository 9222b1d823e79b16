"""The checker: compares a recorded history with what must hold for it, with any losses, repetitions and any order.

Each check returns the violations that it found, and each names its subject, so that it can be looked up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from tests.drill.history import ANY_METER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.drill.history import History, Wait, Walk

OK: Final = 200
Edge = tuple[str | None, str | None, str | None, str | None]  # meter, session, previous status, status
FEED_SECONDS: Final = 2.0  # from the answer 200 until the waits have received the change


@dataclass(frozen=True)
class Violation:
    """A broken promise.

    :param kind: the promise that is broken
    :param subject: of which session, callout, Dag or wait
    :param message: the actual and the expected state
    """

    kind: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.message}"


@dataclass(frozen=True)
class Result:
    """The result of one check.

    :param claim: what it checks, as text
    :param count: how many things it checked
    :param note: counts that are no violations
    """

    claim: str
    count: int
    violations: list[Violation]
    note: str = ""


@dataclass(frozen=True)
class Bounds:
    """The limits of a drill.

    :param ambiguous: at most so many sessions, whose reports do not determine the present status, may be flagged so;
        no others
    :param lossy: whether callouts may be lost permanently: then only what arrived is compared with the journal
    :param repaired: whether lost callouts were added in another way afterwards
    :param blind: whether waits could not read the journal for a while: they may end by polls then, without certainty
    """

    ambiguous: int = 0
    lossy: bool = False
    repaired: bool = False
    blind: bool = False


def check(history: History, bounds: Bounds) -> list[Result]:
    """Make all checks."""
    checks: list[Callable[[History, Bounds], Result]] = [
        accepted_is_kept,
        every_change_is_known,
        nothing_is_invented,
        states_are_the_truth,
        ambiguous_are_few,
        events_are_changes,
        runs_are_sessions,
        waits_are_right,
    ]
    return [each(history, bounds) for each in checks]


def check_tasks(history: History) -> list[Result]:
    """Make the checks of a drill whose tasks start sessions, stop them, and run after them."""
    return [each(history) for each in (starts_are_single, stops_are_ordered, tasks_succeed)]


def _name(meter_id: object, session_id: object) -> str:
    return f"meter {meter_id} session {session_id}"


def accepted_is_kept(history: History, _: Bounds) -> Result:
    """Check that everything that was answered 200 is in the journal."""
    kept = {row.notification_id for row in history.rows}
    anonymous = Counter((r.meter_id, r.session_id, r.previous, r.status) for r in history.rows if not r.notification_id)
    expected: Counter[tuple[str, str, str | None, str]] = Counter()
    changes = {change.seq: change for change in history.changes}
    violations = []
    accepted = [attempt for attempt in history.attempts if attempt.code == OK]
    for attempt in accepted:
        change = changes[attempt.change]
        if attempt.notification_id is None:
            expected[change.meter_id, change.session_id, change.previous, change.status] += 1
        elif attempt.notification_id not in kept:
            subject = f"{_name(change.meter_id, change.session_id)} {change.previous} -> {change.status}"
            violations.append(Violation("lost", subject, f"{attempt.notification_id} was answered 200 and is not kept"))
    for (meter, session, previous, status), count in expected.items():
        if (found := anonymous[meter, session, previous, status]) < count:
            subject = f"{_name(meter, session)} {previous} -> {status}"
            violations.append(Violation("lost", subject, f"{count} without an id were answered 200, {found} are kept"))
    return Result("callouts answered 200 are in the journal", len(accepted), violations)


def every_change_is_known(history: History, bounds: Bounds) -> Result:
    """Check that every change reached the journal, though servers died."""
    accepted = {attempt.change for attempt in history.attempts if attempt.code == OK}
    kept: Counter[Edge] = Counter((row.meter_id, row.session_id, row.previous, row.status) for row in history.rows)
    true: Counter[Edge] = Counter((c.meter_id, c.session_id, c.previous, c.status) for c in history.changes)
    violations = [
        Violation("missing", f"{_name(meter, session)} {previous} -> {status}", f"was {times} times, in {found} rows")
        for (meter, session, previous, status), times in true.items()
        if (found := kept[meter, session, previous, status]) < times
    ]
    if bounds.lossy:
        missing = (true - kept).total()
        note = f"{missing} changes never arrived"
        return Result("changes that arrived at all", len(history.changes) - missing, [], note)
    if not bounds.repaired:
        # Rows of a change that happens repeatedly may stand for another one of the same kind.
        why = "Zuora gave up: no callout of it was ever answered 200"
        violations += [
            Violation("missing", f"{_name(c.meter_id, c.session_id)} {c.previous} -> {c.status}", why)
            for c in history.changes
            if c.seq not in accepted
        ]
    return Result("changes were accepted and are in the journal", len(history.changes), violations)


def nothing_is_invented(history: History, _: Bounds) -> Result:
    """Check that each row is a change that happened, and that one notification has one row."""
    true = {(c.meter_id, c.session_id, c.previous, c.status) for c in history.changes}
    true |= {(c.meter_id, c.session_id, None, c.status) for c in history.changes if c.previous is None}
    violations = []
    for row in history.rows:
        if row.kind == "poll":
            continue  # about a meter, not about a session
        if row.kind != "status_change":
            violations.append(Violation("invented", _name(row.meter_id, row.session_id), f"a row of kind {row.kind}"))
        elif (row.meter_id, row.session_id, row.previous, row.status) not in true and row.source == "callout":
            what = f"{row.previous} -> {row.status} never was"
            violations.append(Violation("invented", _name(row.meter_id, row.session_id), what))
    ids = Counter(row.notification_id for row in history.rows if row.notification_id is not None)
    violations += [Violation("doubled", each, f"{n} rows of one notification") for each, n in ids.items() if n > 1]
    return Result("rows of the journal are changes that happened, once", len(history.rows), violations)


def states_are_the_truth(history: History, bounds: Bounds) -> Result:
    """Check that the state of each session is the true one, unless it is flagged ambiguous or cannot be determined."""
    violations = [
        Violation("invented", _name(*subject), "is a session that never was")
        for subject in set(history.state_of) - set(history.walks)
    ]
    unknowable = 0
    arrived = {(row.meter_id, row.session_id, row.previous, row.status) for row in history.rows}
    for subject, walk in history.walks.items():
        last = walk.changes[-1]
        if bounds.lossy and (*subject, last.previous, last.status) not in arrived:
            continue
        if (state := history.state_of.get(subject)) is None:
            violations.append(Violation("state", _name(*subject), f"is not known, though it is {walk.last}"))
            continue
        if state.conflict:
            violations.append(Violation("state", _name(*subject), "is flagged conflict, though it ended in one way"))
        if state.run_type != last.run_type:
            violations.append(Violation("state", _name(*subject), f"is {state.run_type}, not {last.run_type}"))
        if state.ambiguous:
            continue
        if state.status != walk.last and not walk.exact and not walk.countable:
            unknowable += 1  # a round that was reported under two ids looks like two rounds
        elif state.status != walk.last:
            violations.append(Violation("state", _name(*subject), f"is {state.status}, in truth {walk.last}"))
        elif state.terminal != (walk.last in ANY_TERMINAL):
            violations.append(Violation("state", _name(*subject), f"is {state.status} with terminal={state.terminal}"))
    note = f"{unknowable} undetermined: open loops reported under several ids" if unknowable else ""
    return Result("sessions have their true last status", len(history.walks), violations, note)


def ambiguous_are_few(history: History, bounds: Bounds) -> Result:
    """Check that only sessions whose reports do not determine the status are flagged ambiguous, and not too many."""
    flagged = [(state.meter_id, state.session_id) for state in history.states if state.ambiguous]
    violations = []
    if not bounds.lossy:
        violations += [
            Violation("ambiguous", _name(*subject), f"is flagged, though its reports show that it is {walk.last}")
            for subject in flagged
            if (walk := history.walks.get(subject)) is not None and walk.exact
        ]
    if len(flagged) > bounds.ambiguous:
        what = f"{len(flagged)} sessions are flagged, {bounds.ambiguous} are allowed"
        violations.append(Violation("ambiguous", "all", what))
    return Result(f"ambiguous sessions, at most {bounds.ambiguous}", len(flagged), violations)


def events_are_changes(history: History, _: Bounds) -> Result:
    """Check that there is an asset event for each time that a session reached a scheduled status, and no more."""
    wanted = {(consumer.meter_id, consumer.status) for consumer in history.consumers}
    found = Counter((event.meter_id, event.key, event.status) for event in history.events)
    violations = []
    for (meter, session, status), count in found.items():
        walk = history.walk_of(meter, session)
        times = walk.times_reached(status) if walk else 0
        if count > times:
            what = f"{count} events of {status}, reached {times} times"
            violations.append(Violation("event", _name(meter, session), what))
    for (meter, session), walk in history.walks.items():
        state = history.state_of.get((meter, session))
        # If a session reached a status and left it again, both may have been reported only together.
        certain = state is not None and not state.ambiguous and state.status == walk.last
        violations += [
            Violation("event", _name(meter, session), f"is {walk.last}, without an event for it")
            for of in (meter, ANY_METER)
            if certain and (of, walk.last) in wanted and not found[of, session, walk.last]
        ]
    return Result("asset events, one each time a status was reached", len(history.events), violations)


def runs_are_sessions(history: History, _: Bounds) -> Result:
    """Check that each Dag ran once for each session that reached its status."""
    awaited: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for consumer in history.consumers:
        awaited[consumer.dag_id].add((consumer.meter_id, consumer.status))
    ran = Counter((run.dag_id, run.key) for run in history.runs)
    violations, expected = [], 0
    sessions: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for meter, session in history.walks:
        sessions[session].append((meter, session))
    for dag_id, pairs in awaited.items():
        for (meter, session), walk in history.walks.items():
            times_reached = sum(walk.times_reached(status) for of, status in pairs if of in (meter, ANY_METER))
            times = ran.pop((dag_id, session), 0)
            state = history.state_of.get((meter, session))
            known = state is not None and not state.ambiguous and state.status == walk.last
            due = known and not pairs.isdisjoint({(meter, walk.last), (ANY_METER, walk.last)})
            due = due and walk.last in ANY_TERMINAL
            expected += due
            if times > times_reached:
                what = f"ran {times} times for {session}, which reached its status {times_reached} times"
                violations.append(Violation("run", dag_id, what))
            elif due and not times:
                violations.append(Violation("run", dag_id, f"did not run for {session}, which is {walk.last}"))
    violations += [
        Violation("run", dag_id, f"ran {times} times for {key}, which is no session of its schedule")
        for (dag_id, key), times in ran.items()
        if times
    ]
    violations += [
        Violation("run", run.dag_id, f"is {run.state} for {run.key}") for run in history.runs if run.state != "success"
    ]
    return Result("Dag runs, one per Dag and session that ended", expected, violations, f"{len(history.runs)} runs")


def waits_are_right(history: History, bounds: Bounds) -> Result:
    """Check that each wait ended as its session did, or goes on if the session has not ended."""
    violations, unsure = [], 0
    for wait in history.waits:
        walk = history.walks.get((wait.meter_id, wait.session_id))
        if walk is None:
            violations.append(Violation("wait", wait.id, f"is for {wait.session_id}, which never was"))
            continue
        message = _wrong(history, bounds, wait, walk)
        if message and wait.certain is False and not wait.alone:
            unsure, message = unsure + 1, ""
        # Of two ends, it cannot be determined which was left again before the report of that has arrived.
        two_ends = len(ANY_TERMINAL & set(walk.statuses)) > 1
        if not message and wait.certain is False and not (bounds.lossy or bounds.blind or two_ends):
            message = "is not certain, though nothing was lost"
        if message:
            violations.append(Violation("wait", wait.id, f"{message} ({wait.session_id}: {', '.join(walk.statuses)})"))
    outcomes = Counter(wait.outcome for wait in history.waits)
    note = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    note += f"; {unsure} ended wrong, but not as certain" if unsure else ""
    return Result("waits ended as their sessions did", len(history.waits), violations, note)


def _wrong(history: History, bounds: Bounds, wait: Wait, walk: Walk) -> str:
    """Return what is wrong with the end of a wait; empty if it is right."""
    if wait.named not in (None, wait.session_id):
        # If a later session was reported first, the wait could not take this one.
        late = walk.received_at + FEED_SECONDS > wait.ended_at
        return "" if late else f"took {wait.named} for the first session of the meter"
    if wait.outcome == "waiting":
        state = history.state_of.get((wait.meter_id, wait.session_id))
        known = state is not None and not state.ambiguous and state.status == walk.last
        met = walk.last in wait.statuses and (not wait.previous or walk.changes[-1].previous in wait.previous)
        over = met or walk.last in wait.fail_on
        seen = known or (bounds.lossy and wait.alone)  # polls show the status where callouts are lost
        return f"still waits, though the session is {walk.last}" if seen and over else ""
    if wait.outcome == "met" and (
        wait.end_status not in wait.statuses or not walk.reached(str(wait.end_status), wait.previous)
    ):
        return f"was met by {wait.end_status}, which the session never reached"
    if wait.outcome == "failed" and (wait.end_status not in wait.fail_on or not walk.reached(str(wait.end_status))):
        return f"failed by {wait.end_status}, which the session never reached"
    return "" if wait.outcome in ("met", "failed") else f"ended with {wait.outcome}"


def starts_are_single(history: History) -> Result:
    """Check that each task that starts a session started one, whichever tries it took, and nothing else did."""
    started = Counter(start.meter_id for start in history.starts)
    violations = [
        Violation("start", wait.id, f"started {times} sessions of meter {wait.meter_id}")
        for wait in history.waits
        if wait.own and (times := started.pop(wait.meter_id, 0)) != 1
    ]
    violations += [Violation("start", f"meter {each}", f"started {n} times by no task") for each, n in started.items()]
    keys = Counter(start.unique_key for start in history.starts)
    violations += [Violation("start", str(each), f"used for {n} starts") for each, n in keys.items() if n > 1]
    return Result("tasks started one session each", len(history.starts), violations)


def stops_are_ordered(history: History) -> Result:
    """Check that the sessions of the tasks that a user marked as failed were stopped, once each, and no others."""
    ordered = {wait.meter_id: wait for wait in history.waits if wait.killed}
    calls = Counter(stop.meter_id for stop in history.stops)
    stopped = Counter(session for stop in history.stops for session in stop.sessions)
    violations = [
        Violation("stop", f"meter {meter}", f"{times} stop calls, though no user marked a task")
        for meter, times in calls.items()
        if meter not in ordered
    ]
    for meter, wait in ordered.items():
        if (calls[meter], stopped[wait.session_id]) != (1, 1):
            what = f"{calls[meter]} stop calls, and {wait.session_id} was stopped {stopped[wait.session_id]} times"
            violations.append(Violation("stop", wait.id, what))
    return Result("stop calls, one for each task that a user marked", len(history.stops), violations)


def tasks_succeed(history: History) -> Result:
    """Check that all other tasks succeeded, and that those of a session's run know their session."""
    violations = []
    for task in history.tasks:
        name = f"{task.dag_id}.{task.task_id} {task.run_id}"
        if task.state != "success":
            violations.append(Violation("task", name, f"is {task.state}"))
        elif task.given is not None and task.given != task.key:
            violations.append(
                Violation("task", name, f"got {task.given or 'no session'}, and its run is of {task.key}")
            )
    return Result("other tasks succeeded, each with its session", len(history.tasks), violations)
