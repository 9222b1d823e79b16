"""The settings of callouts: those that a user has in Zuora, and faults on request.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/create-a-callout-template
and https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/configure-callout-settings
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from zoneinfo import ZoneInfo

from airflow_mediation_provider.protocol.status import RunType, parse_status
from airflow_mediation_provider.simulator.settings import from_mapping, not_negative, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

EventKind = Literal["status_change", "periodic", "event_store_query"]
EVENT_KINDS: Final = ("status_change", "periodic", "event_store_query")
SPELLINGS: Final = ("labels", "dotted", "concatenated", "base_object", "camelCase", "snake_case")
# hmacAlgorithm as Zuora names them, and the names of hashlib.
HASHES: Final = {
    "MD5": "md5",
    "SHA-1": "sha1",
    "SHA-224": "sha224",
    "SHA-256": "sha256",
    "SHA-384": "sha384",
    "SHA-512": "sha512",
}
COPY_IDS: Final = ("same", "other", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutConfig:
    """A notification on an event and its callout template, by Zuora's names where Zuora has one.

    :param url: where it is sent; may contain merge fields
    :param name: name of the notification
    :param active: whether it is sent at all
    :param event: the event that it is about
    :param category: the name of that event in the callout history; Zuora does not publish Mediation's names
    :param meters: filter: only events of these meters (all by default)
    :param run_types: filter: only sessions of these run types
    :param statuses: filter: only these new statuses
    :param method: HTTP method
    :param body: template of the body: JSON text or a mapping, with merge fields like ``{{MeterSession.Status}}``, or
        one of ``labels``, ``dotted``, ``concatenated``, ``base_object`` (concatenated, after the base object of the
        event), ``camelCase``, ``snake_case``: all fields, so spelled
    :param date_format: ``iso``, ``epoch_ms``, a locale (``en_US``, ``en_GB``, ``de_DE``, ``ja_JP``) or a pattern of
        ``strftime``
    :param timezone: IANA name of the zone in which times are written
    :param null_text: what a merge field without a value becomes
    :param headers: custom headers, a shared token for example; values may contain merge fields
    :param username: user name of Basic authentication
    :param password: its password
    :param preemptive: whether credentials are sent at once, not only when the receiver requests them
    :param hmac_secret: secret of the HMAC signature; none: not signed
    :param hmac_algorithm: MD5, SHA-1, SHA-224, SHA-256, SHA-384 or SHA-512
    :param hmac_output_format: BASE64 or HEX
    :param hmac_data: template of the signed message: ``{{Request.Body}}``, ``{{Request.Headers.<name>}}``, merge fields
    :param hmac_key: name of the signature's header
    :param hmac_value: template of its value, with ``{{Request.HMAC.Signed}}``
    :param retry: whether a failed attempt is repeated at all (Zuora: Retriable)
    :param copies: how many callouts each event causes: a number, or the least and the most (several notifications on
        one event, resent ones)
    :param copy_ids: the notification id that a copy may have, at random: the ``same`` as the first one, an ``other`` or
        ``none``
    :param disorder: each callout is delayed by up to so many seconds before ``time_scale``, at random
    :param loss: share of callouts that get lost: all their attempts end without an answer, also in the history
    :param vanish: share of events that cause no callout at all, and leave no trace in the history
    :param lost_answers: share of attempts whose answer does not arrive, though the receiver gave one
    """

    url: str
    name: str = "Meter session status"
    active: bool = True
    event: EventKind = "status_change"
    category: str = ""
    meters: tuple[str, ...] = ()
    run_types: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    method: str = "POST"
    body: str | Mapping[str, Any] = "camelCase"
    date_format: str = "iso"
    timezone: str = "UTC"
    null_text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    username: str | None = None
    password: str = ""
    preemptive: bool = False
    hmac_secret: str | None = None
    hmac_algorithm: str = "SHA-256"
    hmac_output_format: Literal["BASE64", "HEX"] = "BASE64"
    hmac_data: str = "{{Request.Body}}"
    hmac_key: str = "X-Mediation-Signature"
    hmac_value: str = "{{Request.HMAC.Signed}}"
    retry: bool = True
    copies: int | tuple[int, int] = 1
    copy_ids: tuple[str, ...] = ("same",)
    disorder: float = 0.0
    loss: float = 0.0
    vanish: float = 0.0
    lost_answers: float = 0.0

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"callout: url must begin with http:// or https://, got {self.url!r}")
        put(self, "meters", tuple(str(meter) for meter in self.meters))
        put(self, "run_types", tuple(str(RunType(name)) for name in self.run_types))
        put(self, "statuses", tuple(parse_status(status) for status in self.statuses))
        put(self, "headers", {str(name): str(value) for name, value in self.headers.items()})
        if not isinstance(self.body, str):
            put(self, "body", json.dumps(self.body))
        put(self, "copies", (self.copies, self.copies) if isinstance(self.copies, int) else tuple(self.copies))
        put(self, "copy_ids", (self.copy_ids,) if isinstance(self.copy_ids, str) else tuple(self.copy_ids))
        put(self, "category", self.category or f"com.zuora.notification:{self.event}")
        one_of(self, "event", EVENT_KINDS)
        one_of(self, "hmac_algorithm", HASHES)
        one_of(self, "hmac_output_format", ("BASE64", "HEX"))
        if not self.copy_ids or set(self.copy_ids) - set(COPY_IDS):
            raise ValueError(f"copy_ids must be some of {', '.join(COPY_IDS)}, got {self.copy_ids!r}")
        if len(self.copies_range) != 2 or not 1 <= self.copies_range[0] <= self.copies_range[1]:
            raise ValueError(f"copies must be a number >= 1, or the least and the most, got {self.copies!r}")
        not_negative(self, "disorder", "loss", "vanish", "lost_answers")
        _check_zone(self.timezone)

    @property
    def copies_range(self) -> tuple[int, int]:
        """Return the least and the most callouts of one event."""
        return self.copies  # type: ignore[return-value]  # made a pair when it was read

    @classmethod
    def parse(cls, value: Mapping[str, Any] | CalloutConfig) -> CalloutConfig:
        """Read a callout from a mapping of its fields.

        :raises ValueError: a field is unknown, missing or wrong
        """
        return value if isinstance(value, CalloutConfig) else from_mapping(cls, value, "callout")

    def to_dict(self) -> dict[str, Any]:
        """Return the callout for the control API: secrets, and headers that may contain some, are left out."""
        hidden = {"password", "hmac_secret", "headers"}
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        return {**shown, "headers": sorted(self.headers), "signed": self.hmac_secret is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """The tenant's settings of callouts, and the bounds of their network.

    :param attempts: how often a callout is tried at most, 1 to 5
    :param interval: seconds between two attempts, before ``time_scale``
    :param connect_timeout: seconds to connect; real ones, because the network is not scaled
    :param data_timeout: seconds from then to the end of the answer; real ones
    :param confirm: whether a 200 with ``{"success": false}`` counts as a failure (Zuora: Confirm success by parsing
        response content)
    :param retry_unauthorized: whether a refused authentication is tried again; Zuora's pages contradict each other
    :param resend_same_id: whether a callout that is sent again has its old notification id, which Zuora leaves open
    :param concurrency: how many callouts are sent at once
    :param seed: of the random numbers: the same seed and the same events have the same faults
    :param history_context: the content of ``eventContext`` in the callout history, which Zuora leaves open: ``full``,
        ``tags`` or ``dotted``
    :param history_of: whether the callout history has a record of each ``callout``, of its last attempt, or of each
        ``attempt``, which Zuora leaves open
    :param history_timezone: IANA name of the zone of times in the callout history and its parameters
    :param history_delay: seconds until a record appears in the callout history, before ``time_scale``
    """

    attempts: int = 3
    interval: float = 1800.0
    connect_timeout: float = 10.0
    data_timeout: float = 15.0
    confirm: bool = False
    retry_unauthorized: bool = False
    resend_same_id: bool = True
    concurrency: int = 8
    seed: int = 0
    history_context: Literal["full", "tags", "dotted"] = "full"
    history_of: Literal["callout", "attempt"] = "callout"
    history_timezone: str = "UTC"
    history_delay: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError(f"attempts must be 1 to 5, got {self.attempts!r}")
        if not 0 <= self.interval <= 24 * 3600:
            raise ValueError(f"interval must be at most a day, in seconds, got {self.interval!r}")
        if not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise ValueError(f"concurrency must be a number >= 1, got {self.concurrency!r}")
        one_of(self, "history_of", ("callout", "attempt"))
        one_of(self, "history_context", ("full", "tags", "dotted"))
        not_negative(self, "connect_timeout", "data_timeout", "history_delay")
        _check_zone(self.history_timezone)

    @classmethod
    def parse(cls, value: Mapping[str, Any] | DeliverySettings) -> DeliverySettings:
        """Read the settings from a mapping of them.

        :raises ValueError: a setting is unknown or wrong
        """
        return value if isinstance(value, DeliverySettings) else from_mapping(cls, value, "delivery")


def _check_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error
