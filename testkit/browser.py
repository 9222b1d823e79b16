"""A headless Chromium for the documentation's pictures and the tests of the pages: this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

# The first has no windows of its own, so it takes less processor time.
COMMANDS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Playwright's own defaults already prevent most of Chromium's requests to the internet; these prevent the rest.
FLAGS = ("--disable-gpu", "--disable-quic", "--disable-sync")
WHAT_TO_DO = "install Chromium or Chrome (Debian: chromium-headless-shell), so that one of these is on PATH: "


class NoBrowserError(Exception):
    """There is no browser on this machine, and none could be installed."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; it ends with the context.

    :raises NoBrowserError: there is none, and none could be installed
    """
    command = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=command, args=FLAGS, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


def executable() -> str:
    """Return the path of this machine's Chromium; if there is none, root gets the distribution's package first.

    :raises NoBrowserError: there is none, and none could be installed; the message contains what to do
    """
    if found := _found():
        return found
    instead = WHAT_TO_DO + ", ".join(COMMANDS)
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or apt is None:
        raise NoBrowserError(f"no browser is installed: {instead}")
    print("installing the distribution's package of Chromium", flush=True)
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium-headless-shell"]):
        done = subprocess.run(
            [apt, "--quiet", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            output = done.stdout.strip().rpartition("\n")[2]
            raise NoBrowserError(f"no browser is installed, and apt-get {arguments[0]} failed ({output}): {instead}")
    if found := _found():
        return found
    raise NoBrowserError(f"the package chromium-headless-shell contains no browser: {instead}")


def _found() -> str | None:
    return next(filter(None, map(shutil.which, COMMANDS)), None)
