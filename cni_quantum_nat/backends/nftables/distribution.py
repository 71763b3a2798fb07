"""Distribute the buckets of a shared port over the containers that share it. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_STEP = 41  # of 64, next to the golden section


def distribute(buckets: Sequence[str | None], members: list[str]) -> list[str]:
    """Return a member for each bucket: equal numbers, give or take one, with as few moves as possible.

    buckets: who has each now, None for nobody. An owner that is not a member loses all its buckets. members: at least one.
    """
    quotas = _quotas(buckets, members)
    assigned: list[str | None] = [None] * len(buckets)
    for bucket in _scattered(len(buckets)):
        member = buckets[bucket]
        if member is not None and quotas.get(member, 0):
            quotas[member] -= 1
            assigned[bucket] = member
    return [member or _choose(bucket, members, quotas) for bucket, member in enumerate(assigned)]


def _quotas(buckets: Sequence[str | None], members: list[str]) -> dict[str, int]:
    """Return how many buckets each member gets. The remainder goes to those that have most already, so that fewer move."""
    share, rest = divmod(len(buckets), len(members))
    held = dict.fromkeys(members, 0)
    for member in buckets:
        if member in held:
            held[member] += 1
    by_need = sorted(members, key=lambda member: -held[member])
    return {member: share + (rank < rest) for rank, member in enumerate(by_need)}


def _scattered(count: int) -> list[int]:
    """Return all buckets in an order that spreads them, so that a member gives buckets away from everywhere."""
    return sorted(range(count), key=lambda bucket: bucket * _STEP % count)


def _choose(bucket: int, members: list[str], quotas: dict[str, int]) -> str:
    """Choose for a free bucket, in turn, so that each run of buckets holds all, and so does every second of them.

    Connections to two shared ports may alternate strictly, and each then meets only every second bucket. An odd number of
    members takes turns all the same; with an even one, each round begins with another (for two, it is the Thue-Morse
    sequence).
    """
    count = len(members)
    turn, rounds = bucket, bucket // count
    while rounds and count % 2 == 0:
        turn += rounds
        rounds //= count
    for skipped in range(count):
        member = members[(turn + skipped) % count]
        if quotas[member]:
            quotas[member] -= 1
            return member
    raise AssertionError("the quotas add up to the number of buckets")
