"""Backend Provider for nftables: an attachment is elements of table `inet quantum`, put in and taken out in one transaction.

The kernel is the arbiter: elements are added at once, and only where one is in the way is it looked at.
"""

from __future__ import annotations

from ...kernel.stderr import warn
from ...model.attachments import IPTABLES, NFTABLES
from ...model.errors import TRY_AGAIN_LATER, AlreadyThere, CniError, HostPortConflict, NotThere
from ..base import Backend, Holders, discard
from .full_plan import plan_together
from .layout import SETS, SHARED, SLOT
from .rules import Share, claims_of, plan_rules, plan_shares
from .sharing import Change, SharedPorts
from .table import NftablesTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ...connections.counts import Flows
    from ...model.addresses import Address
    from ...model.attachments import Attachment, AttachmentId, PortMapping
    from ...state.directory import State
    from .rules import Element

_ATTEMPTS = 3  # a table can be flushed under our feet, but hardly three times in a millisecond


class NftablesBackend(Backend):
    """Table `inet quantum`, healed from the records of one state directory."""

    __slots__ = ("_holders", "_shared", "_state", "_table")

    name = NFTABLES

    def __init__(self, state: State) -> None:
        self._state = state
        self._holders = Holders(state)
        self._table = NftablesTable()
        self._shared = SharedPorts(self._table, self._holders)

    def install(self, attachment: Attachment, replaced: list[Attachment]) -> Callable[[], None]:
        """Put the elements into the kernel, at once where nothing is in the way."""
        if self._state.has_iptables():
            self._holders.refuse_held_by(IPTABLES, attachment)
        change = self._install(attachment, replaced)
        return lambda: self._table.commit(delete=change.add, add=change.delete)

    def remove(self, attachment: Attachment) -> list[Address]:
        """Delete the elements that the kernel holds in its name; they may vanish under our feet."""
        elements = plan_rules(attachment)
        foreign: set[Address] = set()
        used: set[int] = {4, 6} if plan_shares(attachment) else set()

        def find() -> Change:
            found = self._table.find(elements)
            foreign.update(e.address for e in found if e and e.address and e.owner != attachment.id.owner)
            used.update(e.family for e, held in zip(elements, found) if e.is_counted and (held is None or held.flows))
            return self._release(attachment, [e for e in found if e and e.owner == attachment.id.owner])

        self._commit(find, str(attachment.id))
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
        for share in plan_shares(attachment):
            if not {share.owner, *siblings}.intersection(self._shared.members(share)):
                problems.append(f"no element of {share} leads to it")
        return problems

    def remove_orphans(self, network: str, known: set[str]) -> None:
        """List all elements, and delete those of the network that nobody accounts for."""

        def find() -> Change:
            orphans = [e for e in self._table.owned_elements(f"{network}/") if e.owner not in known]
            slots = [e for e in orphans if SLOT in SETS[e.set_name].key]
            change = Change(delete=[e for e in orphans if e not in slots])
            parts = {(e.set_name, e.key[:-1], e.owner): Share(e.set_name, e.key[:-1], e.data, e.owner) for e in slots}
            for share in parts.values():
                change.include(self._shared.leave(share))
            return change

        self._commit(find, "garbage")

    def require(self) -> None:
        """Let the kernel take the table under another name, where it is not there already."""
        if self._table.exists():
            self._table.check_layout()
        else:
            from .programs import rehearse  # libnftables, where the table is not there

            rehearse()

    def rebuild(self, elements: list[Element]) -> None:
        """Build the table anew, with these elements, without a gap for packets."""
        from ...connections.counts import note_lost  # only where the table is lost
        from .programs import build, replace  # libnftables

        lost = self._count_flows()
        if self._table.exists():
            replace(elements)
        else:
            build(elements)
        self._state.note_rebuild()
        note_lost(self._state, NFTABLES, lost)

    def make(self, change: Change) -> None:
        """Make a change, in one transaction; the counts of the elements that it deletes are kept."""
        self._table.commit(delete=change.delete, add=change.add)
        if any(element.flows for element in change.delete):
            from ...connections.counts import add_gone  # 0.3 ms, only where there were connections
            from .counts import counted

            add_gone(self._state, NFTABLES, counted(change.delete))

    def close(self) -> None:
        """Close the socket."""
        self._table.close()

    def _install(self, attachment: Attachment, replaced: list[Attachment]) -> Change:
        """Return what was added and removed."""
        if self._table.damaged_chains():
            self._heal(attachment.id)
        elements = plan_rules(attachment)
        careful = bool(replaced or plan_shares(attachment))
        for _ in range(_ATTEMPTS):
            try:
                if careful:
                    return self._install_carefully(attachment, elements, replaced)
                self._table.commit(add=elements, exclusive=True)
                return Change(add=elements)
            except AlreadyThere:
                careful = True
            except NotThere:
                self._make_what_is_missing(attachment.id, elements)
        raise _too_restless(str(attachment.id))

    def _install_carefully(self, attachment: Attachment, elements: list[Element], replaced: list[Attachment]) -> Change:
        """Look at what holds our keys, decide, and swap in one transaction."""
        found = self._table.find(elements)
        wanted = [e for e, held in zip(elements, found) if held is None or self._may_take(attachment.id, e, held)]
        keys = {element.identity for element in wanted}
        change = Change([held for held in found if held is not None and held.identity in keys], wanted)
        waiting = {element.identity for element in elements} - keys
        shares = [share for share in plan_shares(attachment) if share.claim not in waiting]
        for share in shares:
            change.include(self._shared.join(share, attachment.id))
        shared = {share.identity for share in shares}
        for former in replaced:
            given_up = self._give_up(former, keys, shared)
            change.include(given_up)
            keys.update(element.identity for element in given_up.delete)
            shared.update(share.identity for share in plan_shares(former))
        self.make(change)
        return change

    def _give_up(self, replaced: Attachment, keys: Collection[object], shared: Collection[object]) -> Change:
        """Return how what an attachment had, and does not want any more, is taken away."""
        found = self._table.find(plan_rules(replaced))
        freed = [e for e in found if e and e.owner == replaced.id.owner and e.identity not in keys]
        return self._release(replaced, freed, kept_shares=shared)

    def _may_take(self, attachment_id: AttachmentId, wanted: Element, held: Element) -> bool:
        """Whether a held key becomes ours: an address is whose it was given to last, a host port its holder's."""
        if not wanted.is_host_port:
            return True
        *address, protocol, port = wanted.key
        where = f"{port}/{protocol}" + (f" on {address[0]}" if address else "")
        if held.owner != SHARED:
            return self._holders.may_take(attachment_id, held.owner, where)
        if wanted.owner == SHARED and wanted.data == held.data:
            return True
        raise HostPortConflict(
            f"host port {where} is shared by others" + (" in another way" if wanted.owner == SHARED else ""),
            "Publish another port, or give both networks the same sharedPorts, sharedAffinity, conntrackTimeout "
            "and conditions.",
        )

    def _make_what_is_missing(self, newcomer: AttachmentId, elements: list[Element]) -> None:
        """Make the chains of policies that are not ordinary; heal, where that is not what was missing."""
        from .programs import add_policies  # libnftables, for the first attachment with a policy

        special = [element.policy for element in elements if element.policy and not element.policy.is_ordinary]
        if special and not self._table.damaged_chains():
            add_policies(special)
        else:
            self._heal(newcomer)
            add_policies(special)

    def _heal(self, newcomer: AttachmentId) -> None:
        """Build the table with everything that the records of others ask for."""
        damaged: list[CniError] = []
        leftovers: list[Attachment] = []
        others = [a for a in self._state.attachments(damaged, leftovers) if a.id != newcomer and a.backend == NFTABLES]
        for error in damaged:
            warn(error)
        self.rebuild(plan_together(others))
        discard(self._state, leftovers)

    def _count_flows(self) -> Flows:
        """Count what is there before it is lost; to heal is worth more than to count."""
        from .counts import live_flows  # only where the table is lost

        try:
            return live_flows(self._table)
        except CniError as error:
            warn(error)
            return {}

    def _release(self, attachment: Attachment, owned: list[Element], kept_shares: Collection[object] = ()) -> Change:
        """Return how elements of an attachment go, and its parts in shared ports, to its siblings where they wait."""
        siblings = [a for a in self._state.siblings(attachment.id) if a.backend == NFTABLES]
        freed = {element.identity for element in owned if element.is_host_port}
        waiting = [element for element in plan_together(siblings) if element.identity in freed] if freed else []
        change = Change(owned, waiting)
        heirs = {share.identity: share for sibling in reversed(siblings) for share in plan_shares(sibling)}
        for share in plan_shares(attachment):
            if share.identity not in kept_shares:
                change.include(self._shared.leave(share, heirs.get(share.identity)))
        return change

    def _commit(self, find: Callable[[], Change], what: str) -> None:
        """Make the change that `find` finds, in one transaction."""
        for _ in range(_ATTEMPTS):
            change = find()
            try:
                self.make(change)
            except NotThere:
                continue
            return
        raise _too_restless(what)


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
