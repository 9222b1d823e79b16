"""Take the documentation's pictures of the real Airflow UI: `python -m docs.screenshots` (needs chromium).

Starts the demo's stage, plays the scenes it needs, and drives a headless browser through the DevTools protocol.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from demo.play import play
from demo.processes import Processes, free_ports, wait_until
from demo.scenes import SCENES
from demo.stage import PROJECT, Stage

IMAGES = Path(__file__).parent / "images"


class Browser:
    """One headless page.

    :param processes: where the browser is started, and ended with
    :param stack: ends the conversation with it
    """

    def __init__(self, processes: Processes, stack: ExitStack) -> None:
        command = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if command is None:
            sys.exit("chromium is needed for the pictures")
        (port,) = free_ports(1)
        processes.start(
            "browser",
            [
                command,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={processes.root / 'browser'}",
                f"--remote-debugging-port={port}",
                "about:blank",
            ],
        )

        def page() -> str | None:
            try:
                targets = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
            except httpx.HTTPError:
                return None
            return next((each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page"), None)

        address = wait_until(page, timeout=30, what="the browser")
        self._socket = stack.enter_context(connect(address, max_size=None, proxy=None))
        self._last = 0
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def size(self, width: int, height: int) -> None:
        """Set the size of the page in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str, text: str) -> None:
        """Open an address, and wait until it shows a text."""
        self.call("Page.navigate", url=url)
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    def wait(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        wait_until(lambda: bool(self.run(script)), timeout=30, what=script)

    def click(self, element: str) -> None:
        """Click the element that a JavaScript expression finds, once it is there."""
        self.wait(f"!!({element})")
        self.run(f"({element}).scrollIntoView({{block: 'center'}})")
        time.sleep(0.3)
        x, y = self.run(
            f"(() => {{ const box = ({element}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type_in(self, selector: str, text: str, *, enter: bool = False) -> None:
        """Type into the field that a CSS selector finds, once it is there; then the Enter key where asked to."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{field}")
        self.run(f"{field}.focus()")
        self.call("Input.insertText", text=text)
        if enter:
            time.sleep(1)
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def shoot(self, name: str, *, settle: float = 1.5) -> None:
        """Write a picture of the page, once its animations had ``settle`` seconds to end."""
        time.sleep(settle)
        picture = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        (IMAGES / f"{name}.png").write_bytes(picture)


def button(text: str, inside: str = "document") -> str:
    """Return the JavaScript that finds a button by its text."""
    return f"[...{inside}.querySelectorAll('button')].find(each => each.innerText.trim() == {json.dumps(text)})"


def graph(browser: Browser, stage: Stage) -> None:
    """The demo's main DAG after a session that FAILED."""
    played = play(stage, [scene for scene in SCENES if scene.dag_id == "run_and_branch"], lambda _: None)
    failed = next(each for each in played if each.scene.shows == "FAILED")
    browser.size(1500, 560)
    browser.open(f"{stage.airflow.url}/dags/run_and_branch/runs/{failed.run_id}", "how_it_ended")
    browser.click("document.querySelector('button[value=graph]')")
    time.sleep(1)
    browser.click("document.querySelector('.react-flow__controls-fitview')")
    browser.shoot("graph")


def connection_form(browser: Browser, stage: Stage, connection_id: str, secret: str) -> None:
    """Add a connection by the form, as a user does."""
    browser.size(1000, 1080)
    browser.open(f"{stage.airflow.url}/connections", "Add Connection")
    browser.click(button("Add Connection"))
    browser.type_in("[role=dialog] input[name=connection_id]", connection_id)
    browser.type_in("[role=dialog] input[role=combobox]", "mediation", enter=True)
    browser.type_in("[role=dialog] input[name=host]", stage.simulator.url)
    browser.type_in("[role=dialog] input[name=login]", "simulator-client")
    browser.type_in("[role=dialog] input[name=password]", secret)
    browser.shoot("connection-form")
    browser.click(button("Extra Fields"))
    browser.shoot("connection-form-extra")
    browser.click(button("Save"))
    wait_until(
        lambda: connection_id in str(stage.airflow.api("GET", "/connections")), timeout=10, what="the connection"
    )


def connection_test(browser: Browser, stage: Stage, connection_id: str, name: str) -> None:
    """Click a connection's test button."""
    # Airflow 3.3.2 tests no stored connection that has no port (https://github.com/apache/airflow/pull/73298).
    stage.airflow.api(
        "PATCH",
        f"/connections/{connection_id}",
        params={"update_mask": "port"},
        json={"connection_id": connection_id, "conn_type": "mediation", "port": 0},
    )
    browser.size(1000, 560)
    browser.open(f"{stage.airflow.url}/connections", connection_id)
    row = f"[...document.querySelectorAll('tr')].find(each => each.innerText.includes({json.dumps(connection_id)}))"
    browser.click(f"""{row}.querySelector('[aria-label="Test Connection"]')""")
    browser.wait("document.body.innerText.includes('Test Connection')")
    browser.shoot(name)


def main() -> None:
    """Take all pictures."""
    with Stage(PROJECT / ".demo") as stage, ExitStack() as stack:
        browser = Browser(stage.airflow.processes, stack)
        graph(browser, stage)
        connection_form(browser, stage, "mediation_typo", "simulator-secert")
        connection_form(browser, stage, "mediation_sandbox", "simulator-secret")
        connection_test(browser, stage, "mediation_sandbox", "connection-test-good")
        connection_test(browser, stage, "mediation_typo", "connection-test-bad")


if __name__ == "__main__":
    main()
