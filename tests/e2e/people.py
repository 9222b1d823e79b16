"""The users of the pages: one for each role of both auth managers, and one whose role has no permission."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from testkit.client import AirflowClient

ADMIN: Final = "admin"
NOBODY: Final = "nobody"

SIMPLE: Final = {"admin": "admin", "op": "op", "user": "user", "viewer": "viewer", NOBODY: ""}
"""Users of Airflow's simple auth manager, with their roles."""

ONE_DAG: Final = "on_completed"
FAB: Final = {"admin": "Admin", "viewer": "Viewer", "narrow": "Narrow", NOBODY: "Public"}
"""Users of the FAB auth manager, with their roles; ``Narrow`` may read assets and one Dag, and no connection."""
NARROW: Final = (
    ("can_read", "Website"),
    ("menu_access", "Assets"),
    ("can_read", "Assets"),
    ("can_read", f"DAG:{ONE_DAG}"),
    ("can_read", "DAG Runs"),
    ("can_read", "Task Instances"),
)


def password(user: str) -> str:
    """Return a user's password."""
    return f"the password of {user}"


def login(user: str) -> tuple[str, str]:
    """Return the login of a user."""
    return user, password(user)


def cookie(airflow: AirflowClient, user: str) -> dict[str, str]:
    """Return the cookie of a browser after the user has logged in."""
    return {"name": "_token", "value": airflow.token(login(user)), "url": airflow.url}


def make_fab_users() -> None:
    """Create the users and roles of the FAB auth manager; to be run in an environment of that Airflow."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        manager = builder.sm
        narrow = manager.add_role("Narrow")
        for permission in NARROW:
            manager.add_permission_to_role(narrow, manager.create_permission(*permission))
        for user, role in FAB.items():
            made = manager.add_user(user, user, user, f"{user}@example.org", manager.find_role(role), password(user))
            assert made, f"FAB refuses the user {user}"


if __name__ == "__main__":
    make_fab_users()
