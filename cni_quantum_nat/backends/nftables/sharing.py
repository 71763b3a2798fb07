"""Shared ports: new connections are distributed over buckets, and each member has some of them. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

from .distribution import distribute
from .layout import BUCKETS
from .rules import Element, buckets_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...model.units import HostPort
    from .rules import Fields


def owners_of(buckets: Sequence[Element | None]) -> list[str]:
    """Return the owners of the buckets, each once."""
    return list(dict.fromkeys(bucket.owner for bucket in buckets if bucket))


def redistribute(
    port: HostPort, buckets: Sequence[Element | None], members: list[str], endpoints: dict[str, Fields]
) -> list[Element | None]:
    """Return the buckets of a port for these members, with as few moves as possible; all None if there is no member.

    buckets: as they are. endpoints: by owner, where its connections go; of a member who has buckets it may be left out.
    """
    where = {bucket.owner: bucket.data for bucket in buckets if bucket} | endpoints
    known = [owner for owner in members if owner in where][:BUCKETS]
    if not known:
        return [None] * BUCKETS
    present = [bucket.owner if bucket else None for bucket in buckets] or [None] * BUCKETS
    return [
        Element(bucket.set_name, bucket.key, where[owner], owner)
        for bucket, owner in zip(buckets_of(port), distribute(present, known))
    ]
