"""Arguments that MeterSessionSensor refuses when a Dag is parsed, and its start in the triggerer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.waits.wait_result import WaitEnd, WaitResult
from airflow_mediation_provider.sensors import meter_session
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.tasks.build import may_end_without_worker
from airflow_mediation_provider.triggers.meter_session import MeterSessionStartTrigger
from tests.unit.fast_lane import modes
from tests.unit.virtual import EPOCH

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage


@pytest.fixture(autouse=True)
def airflow_33(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments are checked as on Airflow 3.3, with any installed version."""
    monkeypatch.setattr(meter_session, "AIRFLOW_V_3_3_PLUS", True)


def sensor(**arguments: Any) -> MeterSessionSensor:
    with DAG("dag", schedule=None):
        return MeterSessionSensor(**{"task_id": "wait", "meter_id": "12", **arguments})


def rendered(**arguments: Any) -> MeterSessionSensor:
    """Return a sensor whose templates have been rendered to these."""
    made = sensor(**dict.fromkeys(arguments, "{{ params.it }}"))
    for name, value in arguments.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("named", [None, "R-1"])
def test_the_links_point_to_the_session_once_it_is_known(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    connection = {"conn_type": "mediation", "login": "a", "password": "b"}
    extra = {"data_center": "SBX", "ui_link_template": "https://zuora.example/{session_id}"}
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps({**connection, "extra": extra}))
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    session = {"session_id": "R-1", "status": "COMPLETED"}
    event = WaitResult(end=WaitEnd.MET, message="done", session=session).to_dict()
    context: Any = {"ti": ti}
    assert sensor(session_id=named).execute_complete(context, event) == session
    if named is None:
        assert pushed["mediation_session_link"] == "https://zuora.example/R-1"
        assert "session=R-1" in pushed["mediation_session_page"]
    else:
        assert pushed == {}  # they were pushed before the wait


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"meter_id": ""}, "meter_id"),
        ({"meter_id": None}, "meter_id"),
        ({"version": " "}, "version"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "R-1", "since": "2026-01-01T00:00:00Z"}, "session_id and since"),
        ({"session_id": "{{ x }}", "since": "{{ y }}"}, "session_id and since"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01"}, "since"),
        ({"since": datetime(2026, 1, 1)}, "since"),
        ({"run_type": "TEST"}, "run_type must be one of NORMAL, DEBUG"),
        ({"run_type": ["NORMAL", "TEST"]}, "run_type must be one of NORMAL, DEBUG, not 'TEST'"),
        ({"run_type": []}, "run_type must be one of NORMAL, DEBUG, or a list of both"),
        ({"run_type": ["NORMAL"], "statuses": "TESTING_PASSED"}, "statuses: only DEBUG sessions .*run_type='DEBUG'"),
        ({"run_type": ["NORMAL", "DEBUG"], "fail_on": ["TESTING_PASSED"]}, "both statuses and fail_on"),
        ({"statuses": "NEVER_RUN"}, "statuses: no session is ever NEVER_RUN"),
        ({"statuses": []}, "statuses"),
        ({"statuses": ["COMPLETED", "{{ x }}", "COMPLETD"]}, "COMPLETD|nothing"),
        ({"fail_on": "NEVER_RUN"}, "fail_on: no session is ever NEVER_RUN"),
        ({"fail_on": ["COMPLETED"]}, "both statuses and fail_on"),
        ({"statuses": "FAILED", "fail_on": ["FAILED"]}, "both statuses and fail_on"),
        ({"statuses": "TESTING_PASSED"}, "statuses: only DEBUG sessions .*run_type='DEBUG'"),
        ({"previous_statuses": ["??"]}, "previous_statuses: .*RUNNING"),
        ({"on_other_previous": "skip"}, "on_other_previous needs previous_statuses"),
        (
            {"previous_statuses": "RUNNING", "on_other_previous": "no"},
            "on_other_previous must be one of wait, fail, skip",
        ),
        ({"poke_interval": 0}, "poke_interval"),
        ({"timeout": -1}, "timeout"),
        ({"max_unreachable": -1}, "max_unreachable"),
        ({"max_unreachable": "1h"}, "max_unreachable"),
        ({"settle": -1}, "settle"),
        ({"mode": "defer"}, "mode"),
        ({"never_fail": True}, "never_fail"),
        ({"silent_fail": True}, "silent_fail"),
        ({"exponential_backoff": True}, "exponential_backoff"),
        ({"max_wait": 60}, "max_wait"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_refused_when_the_dag_is_parsed(arguments, names):
    if names == "COMPLETD|nothing":
        sensor(**arguments)  # with a template among them, all are checked when it is rendered
        return
    with pytest.raises(ValueError, match=names):
        sensor(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"run_type": RunType.DEBUG, "statuses": "TESTING_PASSED"},
        {"run_type": "debug"},
        {"run_type": ["NORMAL", RunType.DEBUG], "statuses": "TESTING_PASSED", "start_from_trigger": True},
        {"run_type": ["NORMAL", "{{ params.type }}"], "fail_on": ["TESTING_PASSED"]},
        {"statuses": ("PAUSED", "COMPLETED"), "fail_on": []},
        {"previous_statuses": "PUSH_COMPLETED"},
        {"previous_statuses": "PUSH_COMPLETED", "on_other_previous": "skip", "start_from_trigger": True},
        {"previous_statuses": ["NEVER_RUN", "{{ params.before }}"], "start_from_trigger": True},
        {"since": datetime(2026, 1, 1, tzinfo=UTC)},
        {"since": "2026-01-01T00:00:00+01:00"},
        {"since": "{{ data_interval_start }}", "statuses": "{{ params.status }}", "run_type": "{{ params.type }}"},
        {"poke_interval": timedelta(minutes=2), "timeout": timedelta(days=2), "max_unreachable": timedelta(hours=3)},
        {"deferrable": True, "mode": "reschedule"},
        {"timeout": 0},
    ],
    ids=str,
)
def test_a_possible_argument_is_accepted(arguments):
    sensor(**arguments)


def test_the_output_of_a_run_is_accepted_as_the_session_id(stage: Stage):
    stage.zuora.script("12", (0, "RUNNING"), (700, "COMPLETED"))
    output = {"session_id": "R-00005468", "status": "RUNNING", "meter_id": "12"}
    ending = stage.play(lambda: sensor(session_id=output, poke_interval=20))
    assert ending.xcom["session_id"] == "R-00005468"
    ending = stage.play(lambda: rendered(session_id={"session_id": None}))
    assert ending.state == "failed"
    assert "session_id" in str(ending.error)


MODES: dict[str, dict[str, Any]] = {
    "poke": {},
    "reschedule": {"mode": "reschedule"},
    "deferrable": {"deferrable": True},
    "triggerer": {"start_from_trigger": True},
}
SESSION = {"session_id": "R-1", "status": "TESTING", "meter_id": "12", "run_type": "DEBUG", "version": "0.0.1"}


@pytest.mark.parametrize("mode", modes(MODES))
@pytest.mark.parametrize("name", ["session", "session_id"])
@pytest.mark.parametrize("form", [dict, str, json.dumps], ids=["object", "repr", "JSON"])
def test_a_session_object_contains_all_that_the_wait_needs(stage: Stage, mode: str, name: str, form: Any):
    stage.zuora.script("12", (0, "TESTING"), (700, "TESTING_PASSED"))

    ending = stage.play(lambda: sensor(meter_id=None, poke_interval=20, **{name: form(SESSION)}, **MODES[mode]))

    assert ending.state == "success", ending.error
    assert (ending.xcom["session_id"], ending.xcom["status"]) == ("R-1", "TESTING_PASSED")
    assert ending.xcom["run_type"] == "DEBUG"
    # So that downstream tasks get both from the session as well.
    assert (ending.xcom["version"], ending.xcom["mediation_conn_id"]) == ("0.0.1", "mediation_default")


@pytest.mark.parametrize("mode", modes(MODES))
@pytest.mark.parametrize("name", ["session", "session_id"])
@pytest.mark.parametrize(
    ("argument", "given", "own"),
    [
        ("meter_id", "1005", "12"),
        ("version", "0.0.2", "0.0.1"),
        ("run_type", "NORMAL", "DEBUG"),
        ("mediation_conn_id", "zuora_eu", "zuora_us"),
    ],
)
def test_an_argument_that_contradicts_the_session_fails_at_once(
    stage: Stage, mode: str, name: str, argument: str, given: str, own: str
):
    session = {**SESSION, "mediation_conn_id": "zuora_us"}

    def make() -> MeterSessionSensor:
        made = sensor(**{"meter_id": None, name: "{{ dag_run.conf.it }}", argument: given}, **MODES[mode])
        setattr(made, name, session)  # as it is rendered
        if made.start_from_trigger:
            assert made.start_trigger_args is not None
            made.start_trigger_args.trigger_kwargs[name] = session
        return made

    ending = stage.play(make)

    assert ending.state == "failed"
    assert str(ending.error) == (
        f"{argument} is '{given}', but session R-1, which was given, has '{own}': leave {argument} out, or give that"
        " session's"
    )
    assert stage.clock.seconds < 1
    assert stage.zuora.asked == []


def test_a_session_without_an_id_is_the_first_one_after_its_run_call(stage: Stage):
    called = (EPOCH - timedelta(minutes=2)).isoformat()
    lost = {"session_id": None, "status": "INITIALIZING", "meter_id": "12", "observed_at": called}
    made = sensor(meter_id=None, session=lost)

    wait = made.new_wait(stage.context(EPOCH))

    assert (wait.condition.session_id, wait.condition.since) == (None, EPOCH - timedelta(minutes=2))


def test_a_session_that_the_triggerer_cannot_render_is_refused(stage: Stage):
    made = sensor(meter_id=None, session="{{ dag_run.conf }}", start_from_trigger=True)
    assert made.start_trigger_args is not None
    assert made.start_trigger_args.trigger_kwargs["given"] == ["session"]
    for value in ("{{ ti.xcom_pull('run') }}", BaseOperator(task_id="run").output):
        with pytest.raises(ValueError, match=r"start_from_trigger: session (uses|is the output)"):
            sensor(meter_id=None, session=value, start_from_trigger=True)


def test_without_a_session_object_the_arguments_of_the_trigger_are_as_before():
    made = sensor(session_id="R-1", start_from_trigger=True)
    assert made.start_trigger_args is not None
    assert {"session", "given"}.isdisjoint(made.start_trigger_args.trigger_kwargs)
    trigger = MeterSessionStartTrigger(**made.start_trigger_args.trigger_kwargs)
    assert {"session", "given"}.isdisjoint(trigger.serialize()[1])


@pytest.mark.parametrize("nothing", ["None", None, "", " "])
def test_an_empty_output_of_a_run_fails_at_once(stage: Stage, nothing: Any):
    ending = stage.play(lambda: rendered(session_id=nothing))
    assert ending.state == "failed"
    assert stage.zuora.asked == []


def test_since_is_the_data_intervals_start_or_else_run_after():
    starts, due = datetime(2026, 3, 31, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    for interval_start, expected in ((starts, starts), (None, due)):
        dag_run = SimpleNamespace(data_interval_start=interval_start, run_after=due)
        assert MeterSessionSensor._default_since({"dag_run": dag_run}) == expected


def test_reschedule_needs_airflow_33(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter_session, "AIRFLOW_V_3_3_PLUS", False)
    with pytest.raises(ValueError, match=r"reschedule.*3\.3"):
        sensor(mode="reschedule")
    sensor(mode="reschedule", deferrable=True)
    sensor(mode="poke")


# ---- started in the triggerer ----------------------------------------------------------------------------------------


def test_start_from_trigger_is_set_on_the_instance_never_on_the_class():
    started = sensor(start_from_trigger=True)
    assert started.start_from_trigger is True
    assert started.deferrable is True
    assert MeterSessionSensor.start_from_trigger is False
    assert MeterSessionSensor.start_trigger_args is None
    assert sensor().start_from_trigger is False


def test_the_arguments_are_json_and_make_the_trigger():
    args = sensor(
        start_from_trigger=True, statuses=("COMPLETED", "PAUSED"), timeout=600, poke_interval=5, soft_fail=True
    ).start_trigger_args
    assert isinstance(args, StartTriggerArgs)
    kwargs = json.loads(json.dumps(args.trigger_kwargs))
    assert args.trigger_cls.endswith(MeterSessionStartTrigger.__qualname__)
    trigger = MeterSessionStartTrigger(**kwargs)
    assert trigger.serialize()[1] == kwargs | {"arguments_version": 2}
    assert kwargs["statuses"] == ["COMPLETED", "PAUSED"]
    assert args.timeout == timedelta(seconds=660)
    assert (kwargs["timeout"], kwargs["backstop"]) == (600, 660)
    assert args.next_method == "execute_complete"


def test_with_hooks_of_the_user_the_task_ends_on_a_worker():
    for cost in ({"pre_execute": print}, {"on_execute_callback": print}):
        assert sensor(start_from_trigger=True, **cost).start_trigger_args.trigger_kwargs["end_from_trigger"] is False
    assert sensor(start_from_trigger=True).start_trigger_args.trigger_kwargs["end_from_trigger"] is True


def test_templated_arguments_have_the_same_name_in_sensor_and_trigger():
    named = sensor(start_from_trigger=True, session="{{ dag_run.conf }}")
    found = sensor(start_from_trigger=True, before="{{ data_interval_end }}")
    rendered = set()
    for started in (named, found):
        trigger = MeterSessionStartTrigger(**started.start_trigger_args.trigger_kwargs)
        names = {name for name in started.template_fields if name in started.start_trigger_args.trigger_kwargs}
        assert all(hasattr(trigger, name) for name in names)
        rendered |= names
    assert rendered == set(MeterSessionSensor.template_fields)


def test_since_is_a_template_that_every_run_can_render():
    since = sensor(start_from_trigger=True).start_trigger_args.trigger_kwargs["since"]
    assert since == "{{ dag_run.data_interval_start or dag_run.run_after }}"
    assert sensor(start_from_trigger=True, session_id="R-1").start_trigger_args.trigger_kwargs["since"] is None
    given = datetime(2026, 1, 1, tzinfo=UTC)
    assert sensor(start_from_trigger=True, since=given).start_trigger_args.trigger_kwargs["since"] == given.isoformat()


def test_an_execution_timeout_that_comes_first_does_not_move_the_start():
    started = sensor(start_from_trigger=True, timeout=600, execution_timeout=timedelta(seconds=300))
    assert started.start_trigger_args.trigger_kwargs["backstop"] == 300


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"session_id": "{{ ti.xcom_pull(task_ids='run')['session_id'] }}"}, "session_id.*xcom_pull"),
        ({"meter_id": "{{ task_instance.xcom_pull('a') }}"}, "meter_id"),
        ({"since": "{{ prev_data_interval_end_success }}"}, "since.*prev_"),
        ({"since": "{{ ti.start_date }}"}, r"since.*ti\.start_date"),
        ({"meter_id": "{{ triggering_asset_events }}"}, "meter_id"),
        ({"statuses": ["COMPLETED", "{{ ti.xcom_pull('a') }}"]}, "statuses"),
    ],
    ids=str,
)
def test_a_template_that_only_a_worker_can_render_is_refused(arguments, names):
    with pytest.raises(ValueError, match=names):
        sensor(start_from_trigger=True, **arguments)


def test_start_from_trigger_refuses_the_output_of_a_task():
    with DAG("dag", schedule=None):
        upstream = BaseOperator(task_id="run")
        with pytest.raises(ValueError, match="session_id is the output of a task"):
            MeterSessionSensor(task_id="wait", meter_id="1", session_id=upstream.output, start_from_trigger=True)


@pytest.mark.parametrize("template", ["{{ params.meter }}", "{{ dag_run.conf['m'] }}", "{{ ti.run_id }}", "{{ ds }}"])
def test_a_template_that_the_triggerer_can_render_is_accepted(template):
    sensor(start_from_trigger=True, meter_id=template)


def test_airflow_3_2_renders_no_template_in_the_triggerer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter_session, "AIRFLOW_V_3_3_PLUS", False)
    with pytest.raises(ValueError, match=r"3\.3.*since"):
        sensor(start_from_trigger=True)
    with pytest.raises(ValueError, match=r"3\.3.*meter_id"):
        sensor(start_from_trigger=True, session_id="R-1", meter_id="{{ params.meter }}")
    sensor(start_from_trigger=True, session_id="R-1")


def test_mapping_refuses_start_from_trigger_and_maps_without_it():
    with DAG("dag", schedule=None):
        with pytest.raises(ValueError, match="start_from_trigger cannot be used with mapping"):
            MeterSessionSensor.partial(task_id="wait", start_from_trigger=True)
        mapped = MeterSessionSensor.partial(task_id="wait", deferrable=True).expand(meter_id=["1", "2"])
    assert mapped.start_from_trigger is False
    assert mapped.start_trigger_args is None


def test_a_mapped_sensor_starts_on_a_worker_with_any_argument():
    with DAG("dag", schedule=None):
        mapped = MeterSessionSensor.partial(task_id="wait", meter_id="1").expand(start_from_trigger=[True])
    unmapped = mapped.unmap({"start_from_trigger": True})
    assert unmapped.start_from_trigger is False
    assert unmapped.deferrable is True


# ---- ended in the triggerer ------------------------------------------------------------------------------------------


@pytest.fixture
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow.sdk.listener.get_listener_manager", lambda: SimpleNamespace(has_listeners=False))


@pytest.mark.parametrize(
    "cost",
    [
        {"do_xcom_push": False},
        {"outlets": ["an asset"]},
        {"on_success_callback": print},
        {"on_skipped_callback": print},
        {"multiple_outputs": True},
        {"post_execute": print},
        {"pre_execute": print},
        {"map_index_template": "{{ x }}"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_listeners")
def test_a_task_ends_in_the_triggerer_only_if_airflow_loses_nothing(cost):
    from airflow.sdk import Asset

    assert may_end_without_worker(sensor())
    cost = {key: [Asset("a")] if key == "outlets" else value for key, value in cost.items()}
    assert not may_end_without_worker(sensor(**cost))


def test_a_listener_keeps_the_end_on_a_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("airflow.sdk.listener.get_listener_manager", lambda: SimpleNamespace(has_listeners=True))
    assert not may_end_without_worker(sensor())


@pytest.mark.usefixtures("no_listeners")
def test_a_custom_xcom_backend_keeps_the_end_on_a_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", "my.Backend")
    assert not may_end_without_worker(sensor())


@pytest.mark.usefixtures("no_listeners")
def test_tasks_mapped_over_the_session_keep_the_end_on_a_worker():
    with DAG("dag", schedule=None):
        wait = MeterSessionSensor(task_id="wait", meter_id="1")
        MeterSessionSensor.partial(task_id="next").expand(meter_id=wait.output)
    assert not may_end_without_worker(wait)


@pytest.mark.usefixtures("no_listeners")
def test_the_serialized_task_ends_in_the_same_place():
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("dag", schedule=None) as dag:
        MeterSessionSensor(task_id="plain", meter_id="1", start_from_trigger=True)
        MeterSessionSensor(task_id="called_back", meter_id="1", start_from_trigger=True, on_success_callback=print)
    again = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    assert may_end_without_worker(again.get_task("plain"))
    assert not may_end_without_worker(again.get_task("called_back"))
    assert again.get_task("plain").start_from_trigger is True
