from __future__ import annotations

from benchmarks.bounds import Bound

NOISE = [0.0022, 0.006, 0.0022]


def test_a_row_shows_the_value_its_claim_the_earlier_commit_and_the_control():
    bound = Bound("full read", 14.62, "ms", 20, before=132.2, gain=8, control=NOISE)

    assert bound.row() == [
        "full read",
        "14.6 ms (7.31 ms)",
        "20 ms, a 8th of the earlier commit",
        "132 ms, 9.0 times as much",
        "2.2 / 6.0",
    ]
    assert Bound("collections", 0.0, "collections", before=9.0, control=NOISE).row()[3] == "9 collections"


def test_a_claim_fails_by_its_bound_and_by_its_gain():
    assert Bound("full read", 19, "ms", 20, before=200, gain=10, control=NOISE).broken_claims() == []
    assert Bound("full read", 21, "ms", 20, before=200, gain=10, control=NOISE).broken_claims() == [
        "full read: 21 ms, at most 20 claimed",
        "full read: 9.5 times less than before, 10 claimed",
    ]


def test_a_ratio_or_a_size_is_not_scaled():
    assert Bound("replies", 6, "MiB", 5, control=NOISE).broken_claims() == ["replies: 6 MiB, at most 5 claimed"]
    assert Bound("replies", 6, "MiB", 5, control=NOISE).row()[1] == "6 MiB"


def test_without_an_earlier_commit_its_claim_is_not_checked():
    bound = Bound("full read", 19, "ms", gain=10, control=NOISE)

    assert bound.broken_claims() == []
    assert bound.row()[2:4] == ["", ""]
