"""Whether Airflow would lose anything if a task ended in the triggerer, without a worker."""

from __future__ import annotations

from typing import Any, Final

from airflow.sdk import BaseOperator

_OWN_XCOM_BACKEND: Final = "airflow.sdk.execution_time.xcom.BaseXCom"


def may_end_without_worker(task: Any) -> bool:
    """Say whether Airflow would lose nothing if a trigger ended this task by itself, as a success.

    A task that ends in the triggerer emits no outlet events, runs no callback, hook or listener, records no length for
    tasks mapped over it, and writes its XCom past a custom backend.

    :param task: the operator, as parsed on a worker or as deserialized in the triggerer
    """
    from airflow.sdk.configuration import conf
    from airflow.sdk.listener import get_listener_manager

    return not (
        not task.do_xcom_push
        or task.multiple_outputs
        or task.outlets
        or task.has_on_success_callback
        or task.has_on_skipped_callback
        or task.map_index_template
        or has_hooks(task)
        or next(task.iter_mapped_dependants(), None) is not None
        or conf.get("core", "xcom_backend") != _OWN_XCOM_BACKEND
        or get_listener_manager().has_listeners
    )


def has_hooks(task: Any) -> bool:
    """Say whether something of the user's runs before or after ``execute``; a triggerer cannot run it, nor tell."""
    if not isinstance(task, BaseOperator):
        return False
    hooks = (task._pre_execute_hook, task._post_execute_hook)
    cls = type(task)
    overridden = cls.pre_execute is not BaseOperator.pre_execute or cls.post_execute is not BaseOperator.post_execute
    return overridden or any(hook is not None for hook in hooks)
