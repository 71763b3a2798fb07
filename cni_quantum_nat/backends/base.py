"""What a Backend Provider does for the NAT Manager, and who has a right to a host port.

There are two: `provider.py` for nftables, `slowpath/iptables.py` for iptables. A backend works on attachments; how it
makes rules of them is its own affair.
"""

from __future__ import annotations

from ..kernel.namespaces import namespace_identity
from ..kernel.stderr import warn
from ..model.attachments import AttachmentId
from ..model.errors import STATE_DAMAGED, CniError, HostPortConflict
from ..state.claims import PortClaims

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model.addresses import Address
    from ..model.attachments import Attachment, PortMapping
    from ..state.directory import State


class Backend:
    """Rules in the kernel. All of it is called under the lock of the state directory."""

    name: str

    def install(self, attachment: Attachment, replaced: list[Attachment]) -> Callable[[], None]:
        """Make the rules of an attachment, in place of those that it had as `replaced`, and return how to undo it.

        Raises: HostPortConflict, KernelRefused; nothing has changed then.
        """
        raise NotImplementedError

    def remove(self, attachment: Attachment) -> list[Address]:
        """Remove the rules that are there in the attachment's name, and let its siblings have its host ports.

        Returns those of its addresses that translated flows may be left of, but none that another attachment
        has by now.
        """
        raise NotImplementedError

    def is_free(self, mapping: PortMapping, families: set[int]) -> bool:  # noqa: ARG002 - the records know as much
        """Whether the kernel has no rule for the host port, in these families."""
        return True

    def differences(self, attachment: Attachment) -> list[str]:
        """Say in which ways the kernel has other rules for the attachment than it should."""
        raise NotImplementedError

    def remove_orphans(self, network: str, known: set[str]) -> None:
        """Remove the rules of the network's attachments whose owner is not in `known`."""
        raise NotImplementedError

    def require(self) -> None:
        """Check, without a change, that the kernel takes our rules; CniError(50) when not."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what was opened."""


class Holders:
    """Who holds host ports, by the records."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def may_take(self, attachment_id: AttachmentId, owner: str, where: str) -> bool:
        """Whether a host port that `owner` holds becomes ours; HostPortConflict when it must not.

        False: our own container holds it by another network, and we wait. A host port is its holder's, while
        that one lives. `where` names the port in the error.
        """
        if owner == attachment_id.owner:
            return True
        if self.is_sibling(owner, attachment_id):
            return False
        holder = self.record_of(owner)
        if holder is not None and not is_alive(holder):
            return True
        raise _conflict(where, owner, holder)

    def is_sibling(self, owner: str, attachment_id: AttachmentId) -> bool:
        """Whether it is another attachment of the same container."""
        return any(sibling.id.owner == owner for sibling in self._state.siblings(attachment_id))

    def dead_holders(self, attachment: Attachment) -> list[Attachment]:
        """Return whose host ports the attachment takes over; HostPortConflict when one of them is alive.

        By the records alone, so it reads all of them, if more than the attachment itself counts one of its ports.
        """
        return [holder for holder in self._colliding(attachment) if self._may_take_from(holder, attachment)]

    def refuse_held(self, attachment: Attachment) -> None:
        """Refuse host ports that any living attachment holds; reads all records."""
        for holder in self._search_colliding(attachment):
            self._may_take_from(holder, attachment)

    def refuse_held_by(self, backend: str, attachment: Attachment) -> None:
        """Refuse host ports that a living attachment of another backend holds, which our own kernel part cannot see."""
        for holder in self._colliding(attachment):
            if holder.backend == backend:
                self._may_take_from(holder, attachment)

    def has_address(self, address: Address, attachment_id: AttachmentId) -> bool:
        """Whether another attachment on record has this address; reads all records."""
        others = (other for other in self._state.attachments([]) if other.id != attachment_id)
        return any(endpoint.address == address for other in others for endpoint in other.endpoints)

    def _colliding(self, attachment: Attachment) -> list[Attachment]:
        claims = PortClaims(self._state)
        if all(claims.count(mapping) <= 1 for mapping in attachment.port_mappings):
            return []  # that one is the attachment itself
        return self._search_colliding(attachment)

    def _search_colliding(self, attachment: Attachment) -> list[Attachment]:
        others = [other for other in self._state.attachments([]) if other.id != attachment.id]
        return [other for other in others if _collision(other, attachment)]

    def _may_take_from(self, holder: Attachment, attachment: Attachment) -> bool:
        mapping = _collision(holder, attachment)
        assert mapping is not None  # noqa: S101 - for the type checker: they collide
        where = f"{mapping.host_port}/{mapping.protocol}"
        if mapping.specific_host_ip is not None:
            where += f" on {mapping.specific_host_ip}"
        return self.may_take(attachment.id, holder.id.owner, where)

    def record_of(self, owner: str) -> Attachment | None:
        """Return the record that an element's comment names; an abbreviated comment costs a search."""
        if "~" in owner:
            return next((a for a in self._state.attachments([]) if a.id.owner == owner), None)
        network, _, rest = owner.partition("/")
        container_id, _, interface = rest.partition("/")
        return readable_record(self._state, AttachmentId(network, container_id, interface)) if interface else None


def _collision(one: Attachment, other: Attachment) -> PortMapping | None:
    """Return a mapping of the one that wants a host port that the other has."""
    families = one.published_families & other.published_families
    for mapping in one.port_mappings:
        for rival in other.port_mappings:
            if mapping.is_same_port(rival, families) and not (mapping.sharing and rival.sharing):
                return mapping
    return None


def is_alive(attachment: Attachment) -> bool:
    """Whether the network namespace that the attachment was made in still exists, under the same path.

    One that was made by the Python API has none, and lives until it is undone.
    """
    return not attachment.netns or namespace_identity(attachment.netns) == attachment.netns_identity


def readable_record(state: State, attachment_id: AttachmentId) -> Attachment | None:
    """Return the record; one that is damaged counts as lost, so that ADD and DEL can put an end to it."""
    try:
        return state.read(attachment_id)
    except CniError as error:
        if error.code != STATE_DAMAGED:
            raise
        warn(error)
        return None


def discard(state: State, leftovers: list[Attachment]) -> None:
    """Remove the records of earlier boots, and what they count."""
    for attachment in leftovers:
        state.remove(attachment.id)
    if leftovers:
        PortClaims(state).count_again()


def _conflict(where: str, owner: str, holder: Attachment | None) -> HostPortConflict:
    if holder is not None:
        return HostPortConflict(
            f"host port {where} is held by {holder.id}", "Publish another port, or remove that container first."
        )
    return HostPortConflict(
        f"host port {where} is held by {owner or 'an element of unknown owner'}, which has no record here",
        "If that container is gone, a GC of its network frees the port; another stateDir may hold its record.",
    )
