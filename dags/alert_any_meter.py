"""Send a mail for each session of any meter that FAILED: with its timeline, its first errors by code, and links.

Zuora's callout starts the run, also for a meter that is made tomorrow. Each notifier of Airflow can send the message;
this Dag uses the one for mails, with the connection ``smtp_default``. A test starts no run: a DEBUG session that fails
is TESTING_FAILED.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Context, dag, get_current_context, task

from airflow_mediation_provider.alerts import MediationAlert
from airflow_mediation_provider.assets import ANY_METER, on_meter_session, triggering_session


def send(alert: MediationAlert, context: Context) -> None:
    """Send one mail."""
    # Imported here, so that Airflow does not import it each time it parses this file.
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    SmtpNotifier(to="operations@example.com", subject=alert.subject, html_content=alert.html)(context)


@dag(
    schedule=on_meter_session(ANY_METER, "FAILED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def alert_any_meter() -> None:
    """Send the alert of the session that started the run."""

    @task
    def mail() -> str:
        """Send the alert, and return its text, which Airflow shows as the task's XCom."""
        context = get_current_context()
        alert = MediationAlert(triggering_session(context), context=context)
        send(alert, context)
        return alert.text

    mail()


alert_any_meter()
