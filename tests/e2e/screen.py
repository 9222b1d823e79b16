"""A user's view: one tab of the browser on Airflow, with our page in a frame; it records every error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import address, framed, session_page

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Frame, FrameLocator, Locator, Request

# A page refreshes itself every five seconds, and a busy machine needs some more.
SOON = 60_000
expect.set_options(timeout=SOON)


class Screen:
    """One tab.

    :param context: of the browser, logged in or not
    :param url: of Airflow
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(SOON)
        self.wrong: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("request", self._request)
        self.page.on("dialog", self._dialog)

    def open(self, path: str) -> None:
        """Open an address below Airflow's."""
        self.page.goto(f"{self.url}{path}")

    def open_sessions(self, query: str = "") -> None:
        """Open the list in Airflow's frame, and wait until it is there."""
        self.page.goto(framed(self.url, f"{address(self.url, '/sessions')}?{query}"))
        expect(self.inside.get_by_role("heading", name="Meter sessions")).to_be_visible()

    def open_session(self, conn_id: str, meter_id: str, session_id: str) -> None:
        """Open a session's page in Airflow's frame, and wait until it is there."""
        self.page.goto(framed(self.url, session_page(self.url, conn_id, meter_id, session_id)))
        expect(self.inside.get_by_role("heading", level=1)).to_contain_text(session_id)

    @property
    def inside(self) -> FrameLocator:
        """The content of the frame."""
        return self.page.frame_locator("iframe")

    @property
    def frame(self) -> Frame:
        """The frame itself, to run scripts in."""
        found = self.page.locator("iframe").element_handle().content_frame()
        assert found is not None
        return found

    @property
    def sessions(self) -> Locator:
        """The lines of the list."""
        return self.inside.locator("table.sessions tbody tr")

    def row(self, session_id: str) -> Locator:
        """Return a session's line in the list."""
        return self.sessions.filter(has=self.inside.get_by_role("link", name=session_id, exact=True))

    def mark(self) -> None:
        """Leave a mark that no reload survives."""
        self.frame.evaluate("window.unreloaded = true")

    @property
    def unreloaded(self) -> Any:
        """Whether the mark still exists."""
        return self.frame.evaluate("window.unreloaded === true")

    def excuse(self, *texts: str) -> None:
        """Remove expected errors from the record: each of the texts must be in it."""
        for text in texts:
            fitting = [each for each in self.wrong if text in each]
            assert fitting, f"{text!r} did not happen: {self.wrong}"
            self.wrong = [each for each in self.wrong if text not in each]

    def _console(self, message: ConsoleMessage) -> None:
        # Requests to another origin are recorded already.
        if message.type == "error" and urlsplit(message.location["url"]).netloc in ("", urlsplit(self.url).netloc):
            self.wrong.append(f"console: {message.text} ({message.location['url']})")

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != urlsplit(self.url).netloc:
            self.wrong.append(f"request to {request.url}")

    def _dialog(self, dialog: Dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()
