"""RunMeterOperators to be killed, cleared and marked, each with a meter of its own; see test_crashes.py."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_mediation_provider.operators.meter import RunMeterOperator


class SlowToResume(RunMeterOperator):
    """Gives time to kill the worker on which a deferred task resumed, before it reads the trigger's event."""

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        if context["ti"].try_number == 1:
            self.log.info("Resumed, and slow.")
            time.sleep(120)
        return super().execute_complete(context, event)


class SlowToEnd(RunMeterOperator):
    """Gives time to kill the worker when all is done, before Airflow has received that."""

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        return self.slowly(context, super().execute_complete(context, event))

    def execute(self, context: Any) -> Any:
        return self.slowly(context, super().execute(context))

    def slowly(self, context: Any, result: Any) -> Any:
        if context["ti"].try_number == 1:
            self.log.info("Done, and slow.")
            time.sleep(120)
        return result


def run(
    task_id: str, operator: type[RunMeterOperator] = RunMeterOperator, *, poke_interval: float = 1, **arguments: Any
) -> None:
    operator(
        task_id=task_id,
        meter_id=f"{{{{ params.meters.{task_id} }}}}",
        poke_interval=poke_interval,
        settle=1,
        timeout=300,
        retries=3,
        retry_delay=timedelta(seconds=1),
        **arguments,
    )


with DAG("crashes", schedule=None, params={"meters": {}}):
    run("killed_before_the_call", exclusive=True)
    run("killed_with_the_call_on_its_way")
    run("killed_and_overtaken_its_call", exclusive=True)
    run("killed_before_the_reply")
    # Deferred from the lost reply to the next call, for 1.5 poke_interval at least. Airflow takes a task that resumes
    # before the scheduler has processed its deferral for one whose process was lost, and retries it.
    run("reply_lost", deferrable=True, poke_interval=5)
    run("reply_lost_and_a_foreign_session", deferrable=True, poke_interval=5)
    run("killed_and_a_foreign_session", deferrable=True)
    run("killed_in_poke", exclusive=True)
    run("whole_worker_lost", exclusive=True)
    run("killed_after_defer", SlowToResume, deferrable=True, exclusive=True)
    run("killed_when_done", SlowToEnd, exclusive=True)
    run("killed_when_done_and_not_waited", SlowToEnd, wait_for_completion=False)

with DAG("users", schedule=None, params={"meters": {}}):
    run("retried_after_failed", exclusive=True, deferrable=True)
    run("cleared_when_done", exclusive=True, deferrable=True)
    run("cleared_while_running")
    run("cleared_while_running_to_stop", stop_meter_on_kill=True)
    run("cleared_while_deferred", deferrable=True)
    run("cleared_while_deferred_to_stop", deferrable=True, stop_meter_on_kill=True)
    run("failed_by_user_while_deferred", deferrable=True, stop_meter_on_kill=True)
    run("failed_by_user_while_deferred_not_to_stop", deferrable=True)
    run("failed_by_user_while_running", stop_meter_on_kill=True)
    run("failed_by_user_while_running_not_to_stop")
    run("terminated_by_platform", stop_meter_on_kill=True, exclusive=True)
