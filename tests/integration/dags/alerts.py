"""A task whose callback mails the alert of its session; see test_alerts.py."""

from __future__ import annotations

from typing import Any

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG

from airflow_mediation_provider.alerts import MediationAlert
from airflow_mediation_provider.operators.meter import RunMeterOperator


def mail(context: Any) -> None:
    """Send the alert."""
    alert = MediationAlert.of(context)
    SmtpNotifier(to="callback@example.com", subject=alert.subject, html_content=alert.html)(context)


with DAG("alerts", schedule=None, params={"meter": ""}):
    RunMeterOperator(
        task_id="run",
        meter_id="{{ params.meter }}",
        poke_interval=1,
        settle=1,
        exclusive=True,
        deferrable=True,
        retries=0,
        on_failure_callback=mail,
    )
