"""Zuora's data centers: where the REST API and the UI of each are.

Source: https://developer.zuora.com/v1-api-reference/introduction/ (REST, the names are those of Zuora's own SDK) and
https://developer.zuora.com/docs/get-started/oauth-client-setup-steps/ (UI; Zuora lists it for sandboxes only).
"""

from __future__ import annotations

from enum import Enum


class DataCenter(Enum):
    """A data center by the name that Zuora's SDK gives it: what it is, and its hosts."""

    CSBX = ("US Developer & Central Sandbox", "rest.test.zuora.com", "test.zuora.com")
    SBX_NA = ("US API Sandbox Cloud 1", "rest.sandbox.na.zuora.com", "sandbox.na.zuora.com")
    SBX = ("US API Sandbox Cloud 2", "rest.apisandbox.zuora.com", "apisandbox.zuora.com")
    PROD_NA = ("US Production Cloud 1", "rest.na.zuora.com", None)
    PROD = ("US Production Cloud 2", "rest.zuora.com", None)
    CSBX_EU = ("EU Developer & Central Sandbox", "rest.test.eu.zuora.com", "test.eu.zuora.com")
    SBX_EU = ("EU API Sandbox", "rest.sandbox.eu.zuora.com", "sandbox.eu.zuora.com")
    PROD_EU = ("EU Production", "rest.eu.zuora.com", None)
    CSBX_AP = ("APAC Developer & Central Sandbox", "rest.test.ap.zuora.com", "test.ap.zuora.com")
    PROD_AP = ("APAC Production", "rest.ap.zuora.com", None)

    @classmethod
    def named(cls, name: object) -> DataCenter | None:
        """Return the data center of this name, as a connection's extra spells it; ``None``: there is none."""
        return cls.__members__.get(str(name).strip().upper().replace("-", "_"))

    @property
    def label(self) -> str:
        """The name that people know, with the host."""
        return f"{self.value[0]} ({self.value[1]})"

    @property
    def rest_url(self) -> str:
        """The REST base URL; ``/meters`` hangs directly on it."""
        return f"https://{self.value[1]}"

    @property
    def ui_url(self) -> str | None:
        """The root of the UI, where Zuora documents it."""
        return f"https://{self.value[2]}" if self.value[2] else None
