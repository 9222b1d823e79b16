"""A private MariaDB for the migrations: the system's, else the distribution's package unpacked.

Nothing is installed and root is not needed: if the system has no server, and is a Debian or Ubuntu, the
package and its dependencies are downloaded and unpacked beside the environment's other packages, once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from testkit.processes import NotInTimeError, Processes, free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(sys.prefix) / "mariadb"
PACKAGE = "mariadb-server-core"
MISSING = (
    "no MariaDB server here: install the system's package (Debian: mariadb-server-core, Fedora: mariadb-server, "
    "macOS: brew install mariadb)"
)

AIRFLOW = """
import sys
from tests.mariadb import install_driver
install_driver()
from airflow.__main__ import main
sys.argv[0] = "airflow"
main()
"""


def install_driver() -> None:
    """Let PyMySQL take the place of mysqlclient, the driver that Airflow supports, which must be compiled."""
    import pymysql

    pymysql.install_as_MySQLdb()
    import MySQLdb.converters

    # The one function that PyMySQL lacks, which Airflow needs when it starts.
    MySQLdb.converters.DateTime2literal = MySQLdb.converters.escape_datetime


class MariaDBError(Exception):
    """MariaDB is not installed, or does not start."""


@contextlib.contextmanager
def mariadb(root: Path, *, files: Path | None = None, keep: bool = False) -> Iterator[str]:
    """Run a server in a directory, and yield the address of its one database.

    :param files: the files of another server, to begin from; default: the database is empty
    :param keep: leave its own files, in ``root / "data"``, so that others can begin from them
    """
    program = _program()
    (port,) = free_ports(1)
    if files is None:
        (root / "data").mkdir(parents=True)
    else:
        shutil.copytree(files, root / "data")
    libraries = os.pathsep.join(map(str, UNPACKED.glob("usr/lib/*-linux-*")))
    environment = {**os.environ, **({"LD_LIBRARY_PATH": libraries} if UNPACKED in program.parents else {})}
    processes = Processes(root, environment)
    processes.start("mariadbd", [str(program), *_options(program, root, port)])
    try:
        wait_until(lambda: _answers(processes, port), timeout=30, what="MariaDB to answer", every=0.05)
        if files is None:
            _execute(port, "CREATE DATABASE airflow CHARACTER SET utf8mb4")
        yield f"mysql+pymysql://root@127.0.0.1:{port}/airflow"
    except NotInTimeError as error:
        raise MariaDBError(f"{error}\n{processes.tail('mariadbd')}") from None
    finally:
        processes.close(grace=60 if keep else 0)
        if not keep:
            shutil.rmtree(root / "data")


def airflow(address: str, home: Path, *arguments: str) -> str:
    """Run Airflow's command on that database, and return its output."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
    command = [sys.executable, "-c", AIRFLOW, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def _options(program: Path, root: Path, port: int) -> list[str]:
    base = program.parents[1]
    options = {
        "basedir": base,
        "lc-messages-dir": base / "share" / "mysql",
        "datadir": root / "data",
        "socket": root / "data" / "socket",
        "pid-file": root / "data" / "pid",
        "plugin-dir": root / "data",
        "port": port,
        "bind-address": "127.0.0.1",
        "innodb-log-file-size": "4M",
        # A database that is removed in the end need not survive a crash of the machine.
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-flush-method": "nosync",
        "innodb-doublewrite": 0,
    }
    # Without its system tables, which only a script of another package makes, it requires no password.
    return [
        "--no-defaults",
        "--skip-grant-tables",
        *(f"--{key}={value}" for key, value in options.items()),
        *(["--user=root"] if os.geteuid() == 0 else []),
    ]


def _answers(processes: Processes, port: int) -> bool:
    if not processes.running("mariadbd"):
        raise MariaDBError(f"MariaDB ended:\n{processes.tail('mariadbd')}")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _execute(port: int, statement: str) -> None:
    import pymysql

    with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def _program() -> Path:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])
    if found := shutil.which("mariadbd", path=places):
        return Path(found).resolve()
    program = UNPACKED / "usr" / "sbin" / "mariadbd"
    if not program.exists():
        _unpack()
    return program


def _unpack() -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MariaDBError(MISSING)
    work = UNPACKED.with_name("mariadb.new")
    shutil.rmtree(work, ignore_errors=True)
    for directory in ("state/lists/partial", "cache/archives/partial", "debs", "root"):
        (work / directory).mkdir(parents=True)
    # Lists and cache of its own: the system's may be old or missing, and only root may write them.
    options = {
        "Dir::State": work / "state",
        "Dir::Cache": work / "cache",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Debug::NoLocking": "true",
        # Root's downloads are made by an account that cannot write here.
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "--quiet", *(f"--option={key}={value}" for key, value in options.items())]
    _run([*apt, "update"], work)
    plan = _run([*apt, "--simulate", "--no-install-recommends", "install", PACKAGE], work)
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _run([*apt, "download", *names], work / "debs")
    for package in (work / "debs").glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(work / "root")], work)
    (work / "root").rename(UNPACKED)
    shutil.rmtree(work)


def _run(command: list[str], directory: Path) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode:
        raise MariaDBError(f"{MISSING}; {' '.join(command[:1])} could not get it: {result.stderr.strip()[-500:]}")
    return result.stdout
