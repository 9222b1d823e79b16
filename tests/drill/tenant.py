"""The drill's tenant: sessions of every sort, and the disorder of their callouts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.simulator import CalloutConfig, DeliverySettings, MeterConfig, SimulatorConfig
from tests.drill.history import Consumer

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

SECRET: Final = "drill-secret"
CONN_ID: Final = "drill"
ALL_IDS: Final = ("same", "other", "none")


@dataclass(frozen=True)
class Sort:
    """Sessions of one sort, on meters of their own.

    :param share: of all sessions, in percent
    :param meters: their meters
    :param copy_ids: which notification ids the copies of a callout may have
    """

    name: str
    share: int
    meters: tuple[str, ...]
    copy_ids: tuple[str, ...] = ALL_IDS


# The reports of the first four sorts determine how they ended, in any order and under any ids. The rounds of the
# next two count, so their copies have the id of the first one, as Zuora's retries do. The last two are undetermined.
SORTS: Final = (
    Sort("straight", 25, ("101", "102")),
    Sort("debug", 10, ("103",)),
    Sort("looping", 28, ("104", "105", "106")),
    Sort("reopened", 8, ("107",)),
    Sort("paused", 13, ("108",), ("same",)),
    Sort("failed again", 13, ("109",), ("same",)),
    Sort("without ids", 2, ("110",), ("same", "none")),
    Sort("under other ids", 1, ("111",), ("same", "other")),
)
UNKNOWABLE: Final = frozenset({"without ids", "under other ids"})
METERS: Final = tuple(meter for sort in SORTS for meter in sort.meters)


@dataclass(frozen=True)
class Play:
    """The plan of one session: a script of statuses without times."""

    sort: Sort
    meter_id: str
    run_type: str
    statuses: tuple[str, ...]


def plays(sessions: int, changes: int, seed: int) -> list[Play]:
    """Return the plans of the sessions, with exactly so many changes together.

    :raises ValueError: so few changes are not enough for so many sessions
    """
    chance = random.Random(seed)
    sorts = [sort for sort in SORTS[1:] for _ in range(max(1, round(sessions * sort.share / 100)))]
    sorts += [SORTS[0]] * (sessions - len(sorts))
    short = [_statuses(sort, 1, chance) for sort in sorts]
    left = changes - sum(map(len, short))
    looping = [index for index, statuses in enumerate(short) if _loops(statuses)]
    if left < 0 or not looping:
        raise ValueError(f"{changes} changes are too few for {sessions} sessions")
    rounds = [left // 2 // len(looping) + (1 if n < left // 2 % len(looping) else 0) for n in range(len(looping))]
    for index, more in zip(looping, rounds, strict=True):
        at = short[index].index("RUNNING") + 1
        short[index][at:at] = ["PAUSED", "RUNNING"] * more
    if left % 2:  # one session gets an odd step
        index = next(i for i, sort in enumerate(sorts) if sort.name == "straight")
        short[index].insert(-1, "CONSUME_COMPLETED")
    made = [
        Play(sort, sort.meters[i % len(sort.meters)], "DEBUG" if sort.name == "debug" else "NORMAL", tuple(statuses))
        for i, (sort, statuses) in enumerate(zip(sorts, short, strict=True))
    ]
    chance.shuffle(made)
    return made


def _loops(statuses: list[str]) -> bool:
    return "PAUSED" in statuses


def _statuses(sort: Sort, rounds: int, chance: random.Random) -> list[str]:
    begin, loop = ["INITIALIZING", "RUNNING"], ["PAUSED", "RUNNING"] * rounds
    end = chance.choice(("COMPLETED", "COMPLETED", "FAILED", "CANCELED"))
    match sort.name:
        case "straight":
            pushes = ["USAGE_PUSHING", "PUSH_COMPLETED"] if end == "COMPLETED" else []
            return [*begin, *pushes, end]
        case "debug":
            return ["TESTING", chance.choice(("TESTING_PASSED", "TESTING_FAILED"))]
        case "looping":
            return [*begin, *loop, end]
        case "reopened":  # an end that was left again, for another one
            return [*begin, *loop, "FAILED", "RUNNING", "COMPLETED"]
        case "paused" | "without ids" | "under other ids":
            return [*begin, *loop, "PAUSED"] if chance.random() < 0.5 else [*begin, *loop]
        case "failed again":  # the same end twice
            return [*begin, *loop, "FAILED", "RUNNING", "FAILED"]
        case _:
            raise AssertionError(sort.name)


def callouts(url: str, *, disorder: float) -> list[CalloutConfig]:
    """Return the notifications: all go to one address.

    :param disorder: each callout is delayed by up to so many seconds
    """
    return [
        CalloutConfig(
            url=url,
            name=sort.name,
            meters=sort.meters,
            hmac_secret=SECRET,
            copies=(1, 3),
            copy_ids=sort.copy_ids,
            disorder=disorder,
            lost_answers=0.01,
        )
        for sort in SORTS
    ]


def configuration(delivery: DeliverySettings, **settings: Any) -> SimulatorConfig:
    """Return the tenant, without notifications yet."""
    meters = tuple(MeterConfig(id=meter, name=f"Drill {meter}") for meter in METERS)
    return SimulatorConfig(meters=meters, max_running_meters=len(METERS), delivery=delivery, **settings)


def start(sim: Simulator, play: Play, step: float, chance: random.Random) -> str:
    """Start one session and return its id; each of its statuses lasts about ``step`` seconds."""
    script: list[tuple[str, float | None]] = [(s, step * chance.uniform(0.5, 1.5)) for s in play.statuses]
    script[-1] = (script[-1][0], None)
    session = sim.start_session(play.meter_id, run_type=play.run_type, script=script)
    return str(session["session_id"])


def consumers() -> list[Consumer]:
    """Return the Dags and what each is scheduled on."""
    found = [Consumer("either", "101", "COMPLETED"), Consumer("either", "104", "COMPLETED")]
    for meter in METERS:
        if meter == "103":
            found += [Consumer("tested", meter, status) for status in ("TESTING_PASSED", "TESTING_FAILED")]
        else:
            found.append(Consumer(f"completed_{meter}", meter, "COMPLETED"))
            found += [Consumer(f"failed_{meter}", meter, status) for status in ("FAILED", "CANCELED")]
    return found
