"""Backend Provider for nftables: an attachment is elements of table `inet quantum`, put in and taken out in one transaction.

The kernel is the arbiter: elements are added at once, and only where one is in the way is it looked at.
"""

from __future__ import annotations

from .backend import Backend, Holders, warn
from .detour import build_table, rehearse_table
from .errors import TRY_AGAIN_LATER, AlreadyThere, CniError, NotThere
from .nftables import NftablesTable
from .rules import claims_of, plan_rules, plan_together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Address, Attachment, AttachmentId, PortMapping
    from .rules import Element
    from .state import State

_ATTEMPTS = 3  # a table can be flushed under our feet, but hardly three times in a millisecond


class NftablesBackend(Backend):
    """Table `inet quantum`, healed from the records of one state directory."""

    __slots__ = ("_holders", "_state", "_table")

    name = "nftables"

    def __init__(self, state: State) -> None:
        self._state = state
        self._holders = Holders(state)
        self._table = NftablesTable()

    def install(self, attachment: Attachment, replaced: Attachment | None) -> Callable[[], None]:
        """Put the elements into the kernel, at once where nothing is in the way."""
        added, removed = self._install(attachment.id, plan_rules(attachment), plan_rules(replaced) if replaced else [])
        return lambda: self._table.commit(delete=added, add=removed)

    def remove(self, attachment: Attachment) -> list[Address]:
        """Delete the elements that the kernel holds in its name; they may vanish under our feet."""
        elements = plan_rules(attachment)
        foreign: set[Address] = set()
        used: set[int] = set()

        def owned() -> list[Element]:
            found = self._table.find(elements)
            foreign.update(e.address for e in found if e and e.address and e.owner != attachment.id.owner)
            used.update(e.family for e, held in zip(elements, found) if e.is_counted and (held is None or held.flows))
            return [element for element in found if element and element.owner == attachment.id.owner]

        self._release(owned, attachment.id)
        if self._state.rebuilt_at() > attachment.created_at:
            used = {4, 6}  # the counters began anew, and the flows went on
        addresses = [endpoint.address for endpoint in attachment.endpoints]
        return [address for address in addresses if address not in foreign and address.family in used]

    def is_free(self, mapping: PortMapping, families: set[int]) -> bool:
        """Ask the kernel, which also knows what another state directory put there."""
        return not any(self._table.find(claims_of(mapping, families)))

    def differences(self, attachment: Attachment) -> list[str]:
        """Compare the elements, and the chains that packets come through."""
        if not self._table.exists():
            return ["table inet quantum is missing"]
        elements = plan_rules(attachment)
        problems = self._table.damaged_chains()
        siblings = {sibling.id.owner for sibling in self._state.siblings(attachment.id)}
        for element, found in zip(elements, self._table.find(elements)):
            problems += _difference(element, found, siblings)
        return problems

    def remove_orphans(self, network: str, known: set[str]) -> None:
        """List all elements, and delete those of the network that nobody accounts for."""
        self._release(lambda: [e for e in self._table.owned_elements(f"{network}/") if e.owner not in known])

    def require(self) -> None:
        """Let the kernel take the table under another name, where it is not there already."""
        if not self._table.exists():
            rehearse_table()

    def close(self) -> None:
        """Close the socket, which takes as long as an RCU grace period after a deletion."""
        self._table.close()

    def _install(
        self, attachment_id: AttachmentId, elements: list[Element], replaced: list[Element]
    ) -> tuple[list[Element], list[Element]]:
        """Return what was added and removed."""
        if self._table.damaged_chains():
            self._heal(attachment_id)
        careful = bool(replaced)
        for _ in range(_ATTEMPTS):
            try:
                if careful:
                    return self._install_carefully(attachment_id, elements, replaced)
                self._table.commit(add=elements, exclusive=True)
                return elements, []
            except AlreadyThere:
                careful = True
            except NotThere:
                self._heal(attachment_id)
        raise _too_restless(str(attachment_id))

    def _install_carefully(
        self, attachment_id: AttachmentId, elements: list[Element], replaced: list[Element]
    ) -> tuple[list[Element], list[Element]]:
        """Look at what holds our keys, decide, and swap in one transaction."""
        found = self._table.find(elements)
        wanted = [e for e, held in zip(elements, found) if held is None or self._may_take(attachment_id, e, held)]
        keys = {element.identity for element in wanted}
        removed = [held for held in found if held is not None and held.identity in keys]
        freed = [element for element in self._owned_by(attachment_id, replaced) if element.identity not in keys]
        added = wanted + self._heirs(attachment_id, freed)
        self._table.commit(delete=removed + freed, add=added)
        return added, removed + freed

    def _may_take(self, attachment_id: AttachmentId, wanted: Element, held: Element) -> bool:
        """Whether a held key becomes ours: an address is whose it was given to last, a host port its holder's."""
        if not wanted.is_host_port:
            return True
        *address, protocol, port = wanted.key
        where = f"{port}/{protocol}" + (f" on {address[0]}" if address else "")
        return self._holders.may_take(attachment_id, held.owner, where)

    def _heal(self, newcomer: AttachmentId) -> None:
        """Build the table with everything that the records of others ask for."""
        damaged: list[CniError] = []
        others = [attachment for attachment in self._state.attachments(damaged) if attachment.id != newcomer]
        for error in damaged:
            warn(error)
        build_table(plan_together(others))
        self._state.note_rebuild()

    def _owned_by(self, attachment_id: AttachmentId, elements: list[Element]) -> list[Element]:
        """Return the elements that the kernel holds in this attachment's name."""
        return [found for found in self._table.find(elements) if found and found.owner == attachment_id.owner]

    def _heirs(self, attachment_id: AttachmentId, freed: list[Element]) -> list[Element]:
        """Return what the container's other attachments put in the place of freed host ports."""
        ports = {element.identity for element in freed if element.is_host_port}
        if not ports:
            return []
        waiting = plan_together(self._state.siblings(attachment_id))
        return [element for element in waiting if element.identity in ports]

    def _release(self, find: Callable[[], list[Element]], attachment_id: AttachmentId | None = None) -> None:
        """Delete the elements that `find` finds, in one transaction."""
        for _ in range(_ATTEMPTS):
            elements = find()
            heirs = self._heirs(attachment_id, elements) if attachment_id else []
            try:
                self._table.commit(delete=elements, add=heirs)
            except NotThere:
                continue
            return
        raise _too_restless(str(attachment_id or "garbage"))


def _difference(element: Element, found: Element | None, siblings: set[str]) -> list[str]:
    if found is None:
        return [f"element {element} is missing"]
    if found.owner == element.owner:
        return [] if found.data == element.data else [f"element {element} was changed to {found}"]
    if element.is_host_port and found.owner in siblings:
        return []  # the container has the port by another network
    return [f"element {element} belongs to {found.owner or 'nobody'}"]


def _too_restless(what: str) -> CniError:
    return CniError(
        TRY_AGAIN_LATER,
        f"table inet quantum changes faster than {what} can be worked on",
        "Find out what changes it: nft monitor.",
    )
