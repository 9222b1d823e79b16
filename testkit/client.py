"""The part of Airflow's REST API that the demo and the integration tests need.

Source: https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx

from testkit.processes import NotInTimeError, wait_until

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

RUN_ENDS = frozenset({"success", "failed"})
# On SQLite a write fails if another one takes longer than five seconds.
DATABASE_RETRIES = 5
TASK_ENDS = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class AirflowClient:
    """A client of one Airflow.

    :param url: address of the API server, without a slash at the end
    :param login: name and password of a user; without them, Airflow's auth manager must need no login
    :param authority: file of the authority that issued the API server's certificate, for an address with https
    """

    def __init__(self, url: str, login: tuple[str, str] | None = None, authority: str | None = None) -> None:
        self.url = url
        self._login = login
        self._tls = ssl.create_default_context(cafile=authority)
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False, verify=self._tls)

    def disconnect(self) -> None:
        """Close the connections to the API server."""
        self._http.close()

    def api(self, method: str, path: str, **request: Any) -> Any:
        """Send a request below ``/api/v2`` and return the JSON reply (``None`` if the reply is empty).

        :param method: GET, POST, PATCH or DELETE
        :param path: path below ``/api/v2``, starting with a slash
        :param request: arguments of :meth:`httpx.Client.request` (``json``, ``params``)
        :raises httpx.HTTPStatusError: the reply is an error; its message contains the body
        """
        if "Authorization" not in self._http.headers:
            self._http.headers["Authorization"] = f"Bearer {self.token(self._login)}"
        for _ in range(DATABASE_RETRIES):
            reply = self._http.request(method, f"/api/v2{path}", **request)
            if reply.status_code != httpx.codes.INTERNAL_SERVER_ERROR or "Database error" not in reply.text:
                break
        if reply.is_error:
            raise httpx.HTTPStatusError(
                f"{method} {path}: {reply.status_code} {reply.text[:500]}", request=reply.request, response=reply
            )
        return reply.json() if reply.content else None

    def token(self, login: tuple[str, str] | None) -> str:
        """Return the token of a logged-in user, for a header or the browser's cookie.

        :param login: name and password of the user; ``None`` for an Airflow without logins
        :raises httpx.HTTPStatusError: there is no such user, or a login is needed
        """
        if login is None:
            reply = self._http.get("/auth/token")
        else:
            username, password = login
            reply = self._http.post("/auth/token", json={"username": username, "password": password})
        return str(reply.raise_for_status().json()["access_token"])

    def health(self) -> dict[str, str]:
        """Return the health of each component by name; empty as long as the API server does not answer."""
        try:
            reply = self._http.get("/api/v2/monitor/health").json()
        except (httpx.HTTPError, ValueError):
            return {}
        return {name: str(part.get("status")) for name, part in reply.items()}

    def import_errors(self) -> dict[str, str]:
        """Return the Dag files that could not be imported, with their tracebacks."""
        return {each["filename"]: each["stack_trace"] for each in self.api("GET", "/importErrors")["import_errors"]}

    def dag_ids(self) -> set[str]:
        """Return the Dags that Airflow has."""
        return {dag["dag_id"] for dag in self.api("GET", "/dags", params={"limit": 100})["dags"]}

    def wait_dags(self, dag_ids: Collection[str], *, timeout: float = 90) -> None:
        """Wait until Airflow has the Dags.

        :raises NotInTimeError: a Dag file has an import error (the message contains it), or the time is over
        """

        def known() -> bool:
            if errors := self.import_errors():
                raise NotInTimeError(
                    "Dag import errors:\n" + "\n".join(f"{name}: {text}" for name, text in errors.items())
                )
            return set(dag_ids) <= self.dag_ids()

        wait_until(known, timeout=timeout, what=f"the Dags {sorted(dag_ids)}")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> str:
        """Start a run of a Dag now and return its run id.

        :param conf: the run's configuration, which overrides the Dag's params
        :param run_id: id of the run; made from the time by default
        """
        run_id = run_id or f"manual__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run_id, "conf": dict(conf or {}), "logical_date": datetime.now(UTC).isoformat()}
        try:
            self.api("POST", f"/dags/{dag_id}/dagRuns", json=body)
        except httpx.HTTPStatusError as error:
            # A call was repeated whose error came too late: the run exists.
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
        return run_id

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a Dag run: ``state``, ``conf``, ``start_date``, ``end_date``, ``duration`` and more."""
        reply: dict[str, Any] = self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return reply

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a Dag, the oldest first (100 at most)."""
        reply = self.api("GET", f"/dags/{dag_id}/dagRuns", params={"limit": 100, "order_by": "id"})
        return list(reply["dag_runs"])

    def wait_run(
        self, dag_id: str, run_id: str, *, timeout: float = 120, states: Collection[str] = RUN_ENDS
    ) -> dict[str, Any]:
        """Wait until a run is in one of the states and return it.

        :raises NotInTimeError: the time is over; the message names the states of its tasks
        """

        def ended() -> dict[str, Any] | None:
            run = self.run(dag_id, run_id)
            return run if run["state"] in states else None

        try:
            return wait_until(ended, timeout=timeout, what=f"{dag_id} {run_id} to be {sorted(states)}")
        except NotInTimeError as error:
            raise NotInTimeError(f"{error}; its tasks: {self.task_states(dag_id, run_id)}") from None

    def wait_success(self, dag_id: str, run_id: str, *, timeout: float = 120) -> dict[str, Any]:
        """Wait until a run has ended as a success and return it.

        :raises NotInTimeError: the time is over, or the run failed; the message contains the failed tasks' logs
        """
        run = self.wait_run(dag_id, run_id, timeout=timeout)
        if run["state"] == "success":
            return run
        raise NotInTimeError(f"{dag_id} {run_id} {run['state']}: {self._failures(dag_id, run_id)}")

    def _failures(self, dag_id: str, run_id: str) -> str:
        """Return the state of each task of a run, and the logs of those that failed."""
        logs = "\n".join(
            f"--- {ti['task_id']}, try {ti['try_number']}\n"
            + self.logs(dag_id, run_id, ti["task_id"], try_number=ti["try_number"], map_index=ti["map_index"])[-4000:]
            for ti in self.task_instances(dag_id, run_id)
            if ti["state"] == "failed"
        )
        return f"{self.task_states(dag_id, run_id)}\n{logs}"

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return a run's task instances: ``task_id``, ``map_index``, ``state``, ``try_number``, ``pid`` and more."""
        reply = self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100})
        return list(reply["task_instances"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return the state of each task of a run; a mapped one by ``task_id[map_index]``."""
        return {
            ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']}[{ti['map_index']}]": ti["state"]
            for ti in self.task_instances(dag_id, run_id)
        }

    def wait_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        states: Collection[str] = TASK_ENDS,
        *,
        map_index: int = -1,
        timeout: float = 120,
    ) -> dict[str, Any]:
        """Wait until a task instance is in one of the states and return it.

        :raises NotInTimeError: the time is over, or the run ended with the task in another state; with the failed
            tasks' logs
        """
        wanted = (task_id, map_index)

        def there() -> dict[str, Any] | None:
            over = self.run(dag_id, run_id)["state"] in RUN_ENDS
            found = [ti for ti in self.task_instances(dag_id, run_id) if (ti["task_id"], ti["map_index"]) == wanted]
            if found and found[0]["state"] in states:
                return found[0]
            if over:
                state = found[0]["state"] if found else "not there"
                what = f"{dag_id} {run_id} has ended, and {task_id} is {state}, not {sorted(states)}"
                raise NotInTimeError(f"{what}: {self._failures(dag_id, run_id)}")
            return None

        return wait_until(there, timeout=timeout, what=f"{dag_id} {run_id} {task_id} to be {sorted(states)}")

    def logs(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try of a task instance, one line an event."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        reply = self.api("GET", path, params={"full_content": True, "map_index": map_index})
        content = reply["content"]
        return "\n".join(line if isinstance(line, str) else _log_line(line) for line in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """Return a task's XCom as it is stored, ``None`` if there is none under the key."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            return self.api("GET", path, params={"map_index": map_index})["value"]
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise

    def links(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> dict[str, str | None]:
        """Return the extra links of a task instance by name."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        reply = self.api("GET", path, params={"map_index": map_index})
        return dict(reply["extra_links"])

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str | tuple[str, int]], *, downstream: bool = True
    ) -> list[str]:
        """Clear tasks of a run, as the button in the UI does, and return the ids of those that were cleared.

        :param task_ids: tasks, a mapped one with its map index
        :param downstream: clear the tasks downstream too
        """
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "include_downstream": downstream,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        reply = self.api("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)
        return [ti["task_id"] for ti in reply["task_instances"]]

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Mark a task instance ``success``, ``failed`` or ``skipped``, as the button in the UI does."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.api("PATCH", path, params={"map_index": map_index}, json={"new_state": state})


def _log_line(line: Mapping[str, Any]) -> str:
    errors = [f"{each['exc_type']}: {each['exc_value']}" for each in line.get("error_detail") or ()]
    # When a task is skipped, Airflow logs the reason in a field beside the message.
    return " ".join([str(line.get("event", "")), *errors, line.get("reason") or ""]).rstrip()
