from __future__ import annotations

from airflow_mediation_provider.api_server.http import TtlMap


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_value_expires_after_the_same_time():
    ticks = Ticks()
    recent: TtlMap[int] = TtlMap(10, 100, ticks)
    recent.add("a", 1)
    ticks.now = 6
    recent.add("b", 2)
    assert not recent.add("a", 3)

    ticks.now = 10
    assert (recent.get("a"), recent.get("b"), len(recent)) == (None, 2, 1)
    assert recent.add("a", 3)


def test_a_full_map_accepts_no_more_and_keeps_its_values():
    ticks = Ticks()
    recent: TtlMap[int] = TtlMap(10, 2, ticks)

    assert [recent.add(key, 0) for key in "abc"] == [True, True, False]
    assert recent.get("a") == 0
    ticks.now = 10
    assert recent.add("c", 0)


def test_a_full_map_may_drop_its_oldest_value_for_a_new_one():
    recent: TtlMap[int] = TtlMap(10, 2, Ticks(), drops_oldest=True)

    assert [recent.add(key, 0) for key in "abc"] == [True, True, True]
    assert (recent.get("a"), recent.get("b"), recent.get("c"), len(recent)) == (None, 0, 0, 2)
