"""Branch on a session's status: one branch of the Dag for each status."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

from airflow.sdk import conf
from airflow.sdk.bases.branch import BaseBranchOperator
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_mediation_provider.feed.reports import REPORT_SECONDS, report_note
from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.protocol.sessions.window import bounds
from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    RunType,
    SessionStatus,
    run_types_of,
    status_before,
    status_name,
    warn_of_unknown,
)
from airflow_mediation_provider.protocol.times import from_json
from airflow_mediation_provider.protocol.waits.condition import SessionCondition, refuse_tests
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.tasks.arguments import (
    SessionArguments,
    check_bounds,
    check_flags,
    has_template,
    instant,
    latest_start,
    seconds,
)
from airflow_mediation_provider.tasks.state import utcnow
from airflow_mediation_provider.worker.waiting import SessionWaitMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mediation_provider.protocol.waits.condition import Subject
    from airflow_mediation_provider.tasks.arguments import Id, Instant, OperatorArguments, Session

__all__ = ["MeterSessionBranchOperator"]

Branch = str | Sequence[str]
# Between the status before and the status, in a key of ``branches``.
_AFTER: Final = " -> "


class MeterSessionBranchOperator(SessionArguments, SessionWaitMixin, BaseBranchOperator):
    """Follow the branch of a session's status, and skip the others.

    The session comes from ``session``, the output of a ``RunMeterOperator`` or ``MeterSessionSensor``; or the operator
    waits for it by itself, with the arguments of the sensor. Set ``fail_on=()`` on a ``RunMeterOperator`` before it, so
    that the run succeeds with a FAILED session. A branch is a task id, a task group id, or a list of these; ``[]``
    skips all tasks after this one. ::

        MeterSessionBranchOperator(task_id="branch", session=run.output, on_completed="load", on_failed="alert")

    :param session: the session as an object, or as its JSON: ``run.output``. It contains its meter, version, run type
        and connection: if one of them is given as well and differs, the task fails at once. Templated
    :param meter_id: without ``session``: wait for a session of this meter. Templated
    :param version: the meter's version; the session's, else ``0.0.1``. Templated
    :param session_id: with ``meter_id``: this session, by its id alone; if Zuora reported it for another meter, the
        task fails at once. Templated
    :param since: with ``meter_id`` alone: the first session that starts at or after this time; the start of the data
        interval unless given, else the run's ``run_after``. Templated
    :param before: with ``meter_id``: the latest start (exclusive): a time with a zone, or a timedelta after ``since``;
        see ``MeterSessionSensor``. Templated
    :param run_type: ``NORMAL``, ``DEBUG``, or a list of both for a session of either; the session's, else ``NORMAL``.
        See ``MeterSessionSensor``. Templated
    :param on_completed: the branch of COMPLETED
    :param on_failed: the branch of FAILED
    :param on_canceled: the branch of CANCELED
    :param branches: status to branch, for any status: ``{"TESTING_PASSED": "go", "PAUSED": "resume"}``. The operator
        waits until the session is in one of them, or in a terminal status. A key with two statuses is the branch of a
        status that came right after another one: ``{"PAUSED -> COMPLETED": "late", "COMPLETED": "load"}``. It outranks
        the branch of the status alone; only callouts and the callout history report the status before
    :param default: the branch of a terminal status without one; without a default such a status fails the task
    :param on_timeout: the branch when ``timeout`` has passed, or no session started before ``before``;
        without it the task fails
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two polls of the status
    :param timeout: seconds to wait
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param require_certain: fail if only a poll shows the status, and another run may have masked it
    :param exclusive: your promise that nothing else starts this meter during the wait: a poll can then be certain
    :param settle: seconds for which a status that Zuora reports may be out of date: no poll ends the wait sooner
    :param mediation_conn_id: connection of type ``mediation``; the session's, else ``mediation_default``. Templated
    :raises ValueError: when the Dag is parsed: an argument is unknown or impossible
    """

    template_fields: Sequence[str] = (
        "session",
        "meter_id",
        "version",
        "session_id",
        "since",
        "before",
        "run_type",
        "mediation_conn_id",
    )
    operator_extra_links = SESSION_LINKS
    ui_color = "#e0e4f5"

    def __init__(
        self,
        *,
        session: Session | None = None,
        meter_id: Id | None = None,
        version: str | None = None,
        session_id: Id | None = None,
        since: Instant | None = None,
        before: Instant | timedelta | None = None,
        run_type: RunType | str | Collection[RunType | str] | None = None,
        on_completed: Branch | None = None,
        on_failed: Branch | None = None,
        on_canceled: Branch | None = None,
        branches: Mapping[str, Branch] | None = None,
        default: Branch | None = None,
        on_timeout: Branch | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = timedelta(days=7),
        max_unreachable: timedelta | float = timedelta(hours=1),
        require_certain: bool = False,
        exclusive: bool = False,
        settle: timedelta | float = 30,
        mediation_conn_id: str | None = None,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.take_given(
            session=session,
            session_id=session_id,
            meter_id=meter_id,
            version=version,
            run_type=run_type,
            mediation_conn_id=mediation_conn_id,
        )
        self.since = since
        self.before = before
        self.branches = _branches(on_completed, on_failed, on_canceled, branches)
        self.default = default
        self.on_timeout = on_timeout
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.require_certain = require_certain
        self.exclusive = exclusive
        self.settle = seconds("settle", settle)
        check_flags(deferrable=deferrable, require_certain=require_certain, exclusive=exclusive)
        self._check(default, on_timeout)

    def _check(self, default: Branch | None, on_timeout: Branch | None) -> None:
        if not self.branches and default is None:
            raise ValueError("no branch is given: use on_completed, on_failed, on_canceled, branches or default")
        for name, branch in {**self.branches, "default": default, "on_timeout": on_timeout}.items():
            _check_branch(name, branch)
        warn_of_unknown("branches", [status for name in self.branches for status in name.split(_AFTER)])
        check_bounds(self.since, self.before, given=self.given)
        if default is None and not self.may_be_object and not has_template(self.run_type):
            reached = [name.rpartition(_AFTER)[2] for name in self.branches]
            if self.session_id is None:
                refuse_tests("branches", run_types_of(self.run_type), reached)

    def execute(self, context: Context) -> Any:
        """Branch on the session's status; wait for a status with a branch if it has none yet."""
        return self._run(context)

    def _run(self, context: Context) -> Any:
        from airflow_mediation_provider.exceptions import MediationMisconfigured
        from airflow_mediation_provider.protocol.waits.poll_pace import longest_pause

        try:
            subject, condition = self._question(context)
            self._check_tasks()
        except ValueError as error:
            push_session_links(context, self.hook, str(self.meter_id), None)
            raise MediationMisconfigured.of(error) from None
        if condition is None:
            push_session_links(context, self.hook, subject.meter_id, subject.session_id)
            return self._branch(context, subject.session)
        push_session_links(context, self.hook, condition.meter_id, condition.session_id)
        wait = SessionWait(
            condition,
            started_at=_started_at(subject),
            run_status=subject.session.get("status"),
            exclusive=self.exclusive,
            require_certain=self.require_certain,
            max_unreachable=timedelta(seconds=self.max_unreachable),
            settle=timedelta(seconds=self.settle),
            longest_pause=timedelta(seconds=longest_pause(self.poke_interval)),
            created_at=utcnow(),
        )
        return self._finish(context, self._await_session(context, wait))

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Continue with the result of the trigger."""
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event contains no result: polling Zuora.")
            return self._run(context)
        return self._finish(context, result)

    def _check_tasks(self) -> None:
        """Check every branch before the wait: Airflow checks only the branch that is followed, which is too late."""
        dag = self.get_dag()
        if dag is None:
            return
        followers = self.get_flat_relative_ids(upstream=False)
        for name, branch in {**self.branches, "default": self.default, "on_timeout": self.on_timeout}.items():
            for each in [branch] if isinstance(branch, str) else branch or ():
                group = dag.task_group_dict.get(each)
                tasks = {each} if group is None else {root.task_id for root in group.roots}
                if not tasks <= set(dag.task_dict):
                    raise ValueError(
                        f"the branch of {name} is {each!r}, but the Dag has no such task or task group; the id of a"
                        " task within a group starts with the group's: 'group.task'"
                    )
                if tasks.isdisjoint(followers):
                    self.log.warning("The branch of %s, %s, is not downstream of this task: never skipped.", name, each)

    def _question(self, context: Context) -> tuple[Subject, SessionCondition | None]:
        """Return the subject, and the condition to wait for; none if the session's status is enough."""
        subject = self.take_arguments()
        if subject.session.get("status") in self._ends():
            return subject, None
        since, before = subject.begun_at, None
        if not subject.session:
            since, before = bounds(
                instant("since", self.since) or self._default_since(context), latest_start(self.before)
            )
        condition = SessionCondition(
            meter_id=subject.meter_id,
            version=subject.version,
            session_id=subject.session_id,
            run_types=subject.run_types,
            statuses=self._ends(),
            fail_on=(),
            since=None if subject.session_id else since,
            before=None if subject.session_id else before,
            until=self._wait_until(context),
        )
        return subject, condition

    def _ends(self) -> tuple[str, ...]:
        """Return the statuses at which the wait is over: those with a branch, and the terminal ones."""
        reached = (name.rpartition(_AFTER)[2] for name in self.branches)
        return tuple(dict.fromkeys((*reached, *sorted(ANY_TERMINAL))))

    def _finish(self, context: Context, result: WaitResult) -> Any:
        if result.warning:
            self.log.warning(result.warning)
        if result.end is WaitEnd.TIMED_OUT and self.on_timeout is not None:
            self.log.warning("Following on_timeout: %s", result.message)
            subject = self.take_arguments()
            session = {"meter_id": subject.meter_id, "session_id": subject.session_id}
            return self._follow(context, self.on_timeout, session, result.message)
        self._report_end(context, result.session)
        if result.end is not WaitEnd.MET:
            self.raise_for(result)
        return self._branch(context, cast("Mapping[str, Any]", result.session))

    def _branch(self, context: Context, session: Mapping[str, Any]) -> Any:
        try:
            branch = self._branch_of(session)
        except MediationError as error:
            self._note(context, session, str(error))
            raise
        name, evidence = session.get("session_id") or "(unknown)", session.get("evidence", "the given object")
        doubt = "" if session.get("certain", False) else ", not certain"
        follows = branch if isinstance(branch, str) else ", ".join(branch) or "no branch"
        message = (
            f"Session {name} of meter {session.get('meter_id')} is {session['status']}, by {evidence}{doubt}:"
            f" following {follows}."
        )
        self.log.info(message)
        context["ti"].xcom_push(key="session", value=session)
        return self._follow(context, branch, session, message)

    def _branch_of(self, session: Mapping[str, Any]) -> Branch:
        """Return the branch of a session's status.

        :raises MeterSessionUncertain: the status is not certain, and ``require_certain`` is set
        :raises MediationMisconfigured: the status has no branch
        """
        from airflow_mediation_provider.exceptions import MediationMisconfigured, MeterSessionUncertain

        status, name = session["status"], session.get("session_id") or "(unknown)"
        if self.require_certain and not session.get("certain", False):
            raise MeterSessionUncertain(
                f"Session {name} of meter {session.get('meter_id')} seems to be {status}, but that is not certain"
                f" (evidence: {session.get('evidence')}), and require_certain is set."
            )
        previous = status_before(status, session.get("previous_status"))
        branch = self.branches.get(f"{previous}{_AFTER}{status}", self.branches.get(status, self.default))
        if branch is None:
            given = ", ".join(self.branches)
            before = f" after {previous or 'an unknown status'}" if _AFTER in given else ""
            raise MediationMisconfigured(
                f"Session {name} is {status}{before}, which has no branch: the branches are for {given}. Add it to"
                " branches, or give a default."
            )
        return branch

    def _follow(self, context: Context, branch: Branch, session: Mapping[str, Any], message: str) -> Any:
        """Follow a branch, and report the followed and skipped tasks for the pages."""
        skipped: list[str] = []
        try:
            return self.do_branch(context, branch)
        except DownstreamTasksSkipped as others:
            skipped += (each if isinstance(each, str) else each[0] for each in others.tasks)
            raise
        finally:
            self._note(context, session, message, [branch] if isinstance(branch, str) else branch, skipped)

    def _note(
        self,
        context: Context,
        session: Mapping[str, Any],
        message: str,
        followed: Sequence[str] = (),
        skipped: Sequence[str] = (),
    ) -> None:
        caller = self._feed_caller(seconds=REPORT_SECONDS)
        report_note(
            caller,
            self.mediation_conn_id,
            context["ti"],
            "branch",
            session,
            message,
            followed=followed,
            skipped=skipped,
        )

    @staticmethod
    def _set_state_to_skipped(tasks: Sequence[str | tuple[str, int]], map_index: int | None) -> None:
        """Skip the branches that are not followed, also inside a mapped task group.

        Airflow 3.2 and 3.3 leave that to a check of the scheduler that uses the wrong map index, so that every branch
        would run (https://github.com/apache/airflow/issues/67265). The group's instances exist already.
        """
        del map_index
        if tasks:
            raise DownstreamTasksSkipped(tasks=tasks)


def _branches(
    on_completed: Branch | None,
    on_failed: Branch | None,
    on_canceled: Branch | None,
    others: Mapping[str, Branch] | None,
) -> dict[str, Branch]:
    """Return the branches by status."""
    if others is not None and not isinstance(others, Mapping):
        raise ValueError(f"branches must map statuses to task ids, not be a {type(others).__name__}")
    found = {_reached(name): branch for name, branch in (others or {}).items()}
    if len(found) < len(others or {}):
        raise ValueError(f"branches has a status twice: {', '.join(map(str, others or {}))}")
    for argument, status, branch in (
        ("on_completed", SessionStatus.COMPLETED, on_completed),
        ("on_failed", SessionStatus.FAILED, on_failed),
        ("on_canceled", SessionStatus.CANCELED, on_canceled),
    ):
        if branch is None:
            continue
        if status in found:
            raise ValueError(f"{status} has two branches: {argument} and branches[{str(status)!r}]")
        found[str(status)] = branch
    return found


def _reached(name: object) -> str:
    """Return a key of ``branches`` in its one form: a status, or the status before and the status.

    :raises ValueError: it is neither
    """
    before, arrow, status = name.rpartition(_AFTER.strip()) if isinstance(name, str) else ("", "", name)
    reached = status_name("branches", status)
    return f"{status_name('branches', before.strip(), never_run=True)}{_AFTER}{reached}" if arrow else reached


def _check_branch(name: str, branch: object) -> None:
    if branch is None and name in ("default", "on_timeout"):
        return
    ids = [branch] if isinstance(branch, str) else branch
    if not isinstance(ids, list | tuple | set | frozenset) or not all(
        isinstance(item, str) and item.strip() for item in ids
    ):
        raise ValueError(f"the branch of {name} must be a task id, a task group id or a list of these, not {branch!r}")


def _started_at(subject: Subject) -> datetime | None:
    """Return when a given session started; if its reply was lost, the time of the run call."""
    started = from_json(subject.session.get("started_at"))
    if started is None and subject.session and subject.session_id is None and subject.run_types == (RunType.NORMAL,):
        # A test has no unique key with which the session of its call could be found.
        return subject.begun_at
    return started
