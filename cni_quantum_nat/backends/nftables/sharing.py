"""Shared ports: several containers, each with its part of the slots that new connections are dealt to."""

from __future__ import annotations

from ...model.errors import HostPortConflict
from ..base import is_alive
from .distribution import deal
from .layout import SHARED, SLOTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...model.attachments import AttachmentId
    from ..base import Holders
    from .rules import Element, Share
    from .table import NftablesTable


class Change:
    """Elements to be deleted and added, in one transaction."""

    __slots__ = ("add", "delete")

    def __init__(self, delete: list[Element] | None = None, add: list[Element] | None = None) -> None:
        self.delete = delete or []
        self.add = add or []

    def include(self, other: Change) -> None:
        self.delete += other.delete
        self.add += other.add


class SharedPorts:
    """The slots in the kernel, under the lock."""

    __slots__ = ("_holders", "_table")

    def __init__(self, table: NftablesTable, holders: Holders) -> None:
        self._table = table
        self._holders = holders

    def join(self, share: Share, attachment_id: AttachmentId) -> Change:
        """Give the attachment its part; HostPortConflict when the port has as many containers as slots.

        Nothing, where a sibling has one already. A member whose network namespace is gone loses its part.
        """
        slots = self.slots(share)
        owners = _owners(slots)
        if any(self._holders.is_sibling(owner, attachment_id) for owner in owners):
            return Change()
        members = [owner for owner in owners if owner == share.owner or not self._is_dead(owner)]
        if share.owner not in members:
            members.append(share.owner)
        if len(members) > SLOTS:
            raise HostPortConflict(
                f"shared port {share.key[-1]}/{share.key[-2]} has {SLOTS} containers already",
                "Publish another port, or remove one of them.",
            )
        return redeal(share, slots, members, {share.owner: share})

    def leave(self, share: Share, heir: Share | None = None) -> Change:
        """Take the attachment's part away, for the heir or else for all others; the last one takes the port with it."""
        slots = self.slots(share)
        owners = _owners(slots)
        if share.owner not in owners:
            return Change()
        members = [owner for owner in owners if owner != share.owner]
        if heir is not None and heir.owner not in members:
            kept = [heir.owner if owner == share.owner else owner for owner in map(_owner, slots)]
            return _replace(share, slots, kept, {heir.owner: heir})
        if members:
            return redeal(share, slots, members, {})
        claims = [e for e in self._table.find(share.elements_of_the_port()) if e and e.owner == SHARED]
        return Change(delete=[slot for slot in slots if slot] + claims)

    def members(self, share: Share) -> list[str]:
        """Return the owners of the slots."""
        return _owners(self.slots(share))

    def slots(self, share: Share) -> list[Element | None]:
        """Return the port's slots, as the kernel has them."""
        return self._table.find([share.slot(number) for number in range(SLOTS)])

    def _is_dead(self, owner: str) -> bool:
        record = self._holders.record_of(owner)
        return record is not None and not is_alive(record)


def _owner(slot: Element | None) -> str | None:
    return slot.owner if slot else None


def _owners(slots: list[Element | None]) -> list[str]:
    return list(dict.fromkeys(slot.owner for slot in slots if slot))


def redeal(share: Share, slots: list[Element | None], members: list[str], known: dict[str, Share]) -> Change:
    """Return what leads from the slots of a port, as they are, to those of these members, with as few moved as can be.

    share: any of the port. known: of the members, those whose slots may not be there or may lead to the wrong place.
    """
    dealt: list[str | None] = [*deal([_owner(slot) for slot in slots], members)]
    return _replace(share, slots, dealt, known)


def _replace(share: Share, slots: list[Element | None], owners: list[str | None], known: dict[str, Share]) -> Change:
    """Return what leads from the slots as they are to the slots with these owners; `known` are those that come or stay."""
    data = {slot.owner: slot.data for slot in slots if slot}
    data.update({owner: part.data for owner, part in known.items()})
    change = Change()
    for number, (held, owner) in enumerate(zip(slots, owners)):
        if owner is None or (held and held.owner == owner and held.data == data[owner]):
            continue
        if held:
            change.delete.append(held)
        change.add.append(share.slot_for(number, owner, data[owner]))
    return change
