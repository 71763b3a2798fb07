"""Buckets of a shared port: as many for each member, few moved."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.distribution import distribute

MEMBERS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=8, unique=True)


@given(MEMBERS, st.lists(MEMBERS, max_size=6))
def test_however_members_come_and_go_all_have_as_many_to_one_and_the_fewest_buckets_move(
    first: list[str], later: list[list[str]]
) -> None:
    buckets = distribute([None] * 64, first)
    for members in later:
        before, buckets = buckets, distribute(buckets, members)
        counts = Counter(buckets)
        assert set(counts) == set(members)
        assert max(counts.values()) - min(counts.values()) <= 1
        kept = Counter(before)
        quotas = sorted((kept[member] for member in members), reverse=True)
        share, rest = divmod(64, len(members))
        most_that_can_stay = sum(min(had, share + (rank < rest)) for rank, had in enumerate(quotas))
        assert sum(old == new for old, new in zip(before, buckets, strict=True)) == most_that_can_stay


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_every_second_or_fourth_connection_is_distributed_evenly_too(count: int, stride: int) -> None:
    """Two shared ports whose connections alternate use the same counter."""
    members = [f"m{number}" for number in range(count)]
    buckets = distribute([None] * 64, members)
    met = Counter(buckets[(number * stride) % 64] for number in range(64))
    assert max(met.values()) - min(met.values()) <= 8


def test_more_members_than_buckets_leave_some_without() -> None:
    assert len(set(distribute([None] * 64, [str(number) for number in range(64)]))) == 64
