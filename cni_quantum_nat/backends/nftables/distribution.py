"""Who of those who share a host port gets which of its slots. No I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_STEP = 41  # of 64, next to the golden section


def deal(slots: Sequence[str | None], members: list[str]) -> list[str]:
    """Return the member for each slot: as many for each, to one, and as few moved from who has them as that takes.

    slots: who has them now; None is nobody. Whoever is not a member loses all. members: at least one.
    """
    quotas = _quotas(slots, members)
    dealt: list[str | None] = [None] * len(slots)
    for slot in _scattered(len(slots)):
        member = slots[slot]
        if member is not None and quotas.get(member, 0):
            quotas[member] -= 1
            dealt[slot] = member
    return [member or _choose(slot, members, quotas) for slot, member in enumerate(dealt)]


def _quotas(slots: Sequence[str | None], members: list[str]) -> dict[str, int]:
    """Say how many slots each gets: what is left over goes to those who have most, so that fewer move."""
    share, rest = divmod(len(slots), len(members))
    held = dict.fromkeys(members, 0)
    for member in slots:
        if member in held:
            held[member] += 1
    by_need = sorted(members, key=lambda member: -held[member])
    return {member: share + (rank < rest) for rank, member in enumerate(by_need)}


def _scattered(count: int) -> list[int]:
    """Return all slots, neighbours far from each other: who gives slots away gives them from everywhere."""
    return sorted(range(count), key=lambda slot: slot * _STEP % count)


def _choose(slot: int, members: list[str], quotas: dict[str, int]) -> str:
    """Choose for a free slot, in turn, so that each run of slots holds all, and so does every second of them.

    Connections to two shared ports may alternate strictly, and each then meets only every second slot. An odd number of
    members takes turns all the same; with an even one, each round begins with another (for two, it is the Thue-Morse
    sequence).
    """
    count = len(members)
    turn, rounds = slot, slot // count
    while rounds and count % 2 == 0:
        turn += rounds
        rounds //= count
    for skipped in range(count):
        member = members[(turn + skipped) % count]
        if quotas[member]:
            quotas[member] -= 1
            return member
    raise AssertionError("the quotas add up to the number of slots")
