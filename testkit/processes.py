"""Start processes and leave none behind: each leads a session of its own, in which its children stay."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")


class NotInTimeError(Exception):
    """A condition did not hold within its time limit, or cannot hold any more."""


def wait_until(ask: Callable[[], T | None], *, timeout: float, what: str, every: float = 0.25) -> T:
    """Call a function repeatedly until its result is true, and return the result.

    :param ask: returns something false until then; an exception ends the wait
    :param timeout: seconds after which to give up
    :param what: what is awaited, for the message
    :param every: seconds between two calls
    :raises NotInTimeError: the time is over
    """
    deadline = time.monotonic() + timeout
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise NotInTimeError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(every)
    return answer


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1; all different, because all are held until the last is found."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Processes:
    """The processes of one root directory, by name.

    :param root: private directory; contains their output in ``root/<name>.log``, and is their working directory
    :param env: their environment
    """

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        self.env = dict(env)
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process in a session of its own: a Ctrl-C reaches it only through us, in the right order."""
        if self.running(name):
            raise ValueError(f"{name} runs already")
        with self.log_file(name).open("ab") as log:
            self._started[name] = subprocess.Popen(
                command,
                env=self.env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, name: str, command: Sequence[str], *, timeout: float) -> None:
        """Run a command to its end.

        :raises NotInTimeError: it ended with another exit code than 0, or took longer than ``timeout`` seconds
        """
        self.start(name, command)
        wait_until(lambda: not self.running(name), timeout=timeout, what=f"{name} to end", every=0.05)
        if self._started.pop(name).returncode:
            raise NotInTimeError(f"{name} failed:\n{self.tail(name)}")

    def log_file(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self.root / f"{name}.log"

    def tail(self, name: str, lines: int = 30) -> str:
        """Return the last lines of a process's output."""
        path = self.log_file(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def running(self, name: str) -> bool:
        """Return whether the process runs."""
        process = self._started.get(name)
        return process is not None and process.poll() is None

    def pids(self, name: str) -> list[int]:
        """Return the process and all its descendants, itself first; empty if it does not run."""
        if not self.running(name):
            return []
        leader = self._started[name].pid
        return [leader, *(pid for pid in _session(leader) if pid != leader)]

    def stop(self, name: str, *, sig: int = signal.SIGTERM, grace: float = 20) -> None:
        """Send a signal to the process, give it ``grace`` seconds, then kill what is left of its session.

        With ``SIGKILL`` the whole session is killed at once, as when a machine is lost.
        """
        process = self._started.pop(name, None)
        if process is None:
            return
        if sig != signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        _kill(partial(_session, process.pid))
        process.wait()

    def close(self, *, grace: float = 3) -> None:
        """Stop all of them at once, then kill what is left of their sessions."""
        processes = list(self._started.values())
        try:
            for process in reversed(processes):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            deadline = time.monotonic() + grace
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                _kill(partial(_session, process.pid))
                process.wait()
            self._started.clear()


def processes_in(root: Path) -> list[int]:
    """Return the processes of this user whose working directory is the given one, with any parent."""
    ours = {str(root), f"{root} (deleted)"}
    return [each.pid for each in psutil.process_iter(["cwd"]) if each.pid != os.getpid() and each.info["cwd"] in ours]


def kill_processes_in(root: Path) -> None:
    """Kill the processes that an earlier user of the directory left: it was itself killed before it could stop them."""
    _kill(partial(processes_in, root))


def _session(leader: int) -> list[int]:
    # The id of a session is not reused as long as it has members, so these are ours.
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


def _kill(find: Callable[[], Sequence[int]]) -> None:
    """Kill the processes found, until there are none: one may start another in the meantime."""
    for _ in range(20):
        pids = find()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
