"""NAT Manager: the order of the steps of each verb, and how each step is undone.

The record is written before the kernel is told, and removed after it: whatever happens in between, a DEL or
a GC finds what there is to undo. All of it runs under the state directory's lock.
"""

from __future__ import annotations

import posix

from .detour import build_table
from .errors import (
    CHECK_FAILED,
    CLEAN_UP_INCOMPLETE,
    STATE_DAMAGED,
    TRY_AGAIN_LATER,
    AlreadyThere,
    CniError,
    HostPortConflict,
    NotThere,
)
from .host import HostSettings, interface_towards, namespace_identity
from .model import AttachmentId
from .nftables import NftablesBackend
from .rules import Element, plan_rules, plan_together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from .model import Attachment
    from .state import State

_ATTEMPTS = 3  # a table can be flushed under our feet, but hardly three times in a millisecond


def _nothing() -> None:
    return None


class NatManager:
    """Installs, checks and removes attachments, while it holds the lock of the state directory: use it in `with`."""

    __slots__ = ("_backend", "_host", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self._backend = NftablesBackend()
        self._host = HostSettings()

    def __enter__(self) -> Self:
        self.state.lock()
        return self

    def __exit__(self, *_: object) -> None:
        # The lock first: after a deletion, closing the socket waits for an RCU grace period, and nobody else need.
        self.state.unlock()
        self._backend.close()

    def is_table_built(self) -> bool:
        """Whether the kernel has the table; CniError(50) where nftables cannot be used."""
        return self._backend.has_table()

    def add(self, attachment: Attachment, *, ip_forwarding: bool) -> None:
        """Install an attachment, in place of what it had before; on failure all is as it was."""
        self._find_host_interfaces(attachment)
        elements = plan_rules(attachment)
        if not elements:
            self.remove(attachment.id)
            return
        before = self._readable_record(attachment.id)
        undo: list[Callable[[], None]] = []
        try:
            undo.append(lambda: self._restore_record(attachment.id, before))
            self.state.write(attachment)
            undo.append(self._host.restore)
            if ip_forwarding:
                self._enable_forwarding(attachment)
            added, removed = self._install(attachment.id, elements, plan_rules(before) if before else [])
            undo.append(lambda: self._backend.commit(delete=added, add=removed))
            self._enable_route_localnet(attachment)
        except BaseException as error:
            _run_all(undo, error)
            raise

    def remove(self, attachment_id: AttachmentId, fallback: Callable[[], Attachment | None] = _nothing) -> None:
        """Remove what the attachment owns, and nothing else; nothing happens when it owns nothing.

        `fallback` says what the call itself knows of an attachment whose record is lost.
        """
        attachment = self._readable_record(attachment_id)
        if attachment is None and (attachment := fallback()) is not None:
            self._find_host_interfaces(attachment)
        if attachment is not None:
            elements = plan_rules(attachment)
            self._release(lambda: self._owned_by(attachment_id, elements), attachment_id)
        self.state.remove(attachment_id)

    def check(self, attachment: Attachment) -> None:
        """Compare the call, the record and the kernel; CniError(103) lists all that differs."""
        self._find_host_interfaces(attachment)
        elements = plan_rules(attachment)
        problems = self._differences_in_record(attachment.id, elements)
        if elements:
            problems += self._differences_in_kernel(attachment.id, elements)
        if problems:
            raise CniError(
                CHECK_FAILED,
                f"{attachment.id} is not as it was set up: {'; '.join(problems)}",
                "ADD of the attachment puts it right; after a lost table, ADD of any attachment does.",
            )

    def collect_garbage(self, network: str, valid: set[tuple[str, str]] | None) -> None:
        """Remove the attachments of a network that are not in `valid`; without it, those whose namespace is gone.

        Goes on after a failure, and raises CniError(106) with all of them at the end.
        """
        damaged: list[CniError] = []
        failures = []
        for attachment in list(self.state.attachments(damaged)):
            if attachment.id.network != network or _is_valid(attachment, valid):
                continue
            try:
                self.remove(attachment.id)
            except CniError as error:
                failures.append(f"{attachment.id}: {error.message}")
        if valid is not None:
            self._remove_orphans(network, valid)
        failures += [error.message for error in damaged]
        if failures:
            raise CniError(CLEAN_UP_INCOMPLETE, f"GC of network {network} failed in part: {'; '.join(failures)}")

    def _remove_orphans(self, network: str, valid: set[tuple[str, str]]) -> None:
        """Remove the network's elements that no record and no valid attachment accounts for."""
        known = {AttachmentId(network, container_id, interface).owner for container_id, interface in valid}
        self._release(lambda: [e for e in self._backend.owned_elements(f"{network}/") if e.owner not in known])

    def _readable_record(self, attachment_id: AttachmentId) -> Attachment | None:
        """Return the record; one that is damaged counts as lost, so that ADD and DEL can put an end to it."""
        try:
            return self.state.read(attachment_id)
        except CniError as error:
            if error.code != STATE_DAMAGED:
                raise
            _warn(error)
            return None

    def _differences_in_record(self, attachment_id: AttachmentId, elements: list[Element]) -> list[str]:
        record = self.state.read(attachment_id)
        recorded = {str(element) for element in plan_rules(record)} if record else set()
        if recorded == {str(element) for element in elements}:
            return []
        if record is None:
            return ["its record is lost"]
        return ["its record says something else than prevResult and runtimeConfig"]

    def _differences_in_kernel(self, attachment_id: AttachmentId, elements: list[Element]) -> list[str]:
        if not self._backend.has_table():
            return ["table inet quantum is missing"]
        problems = self._backend.damaged_chains()
        siblings = {sibling.id.owner for sibling in self.state.siblings(attachment_id)}
        for element, found in zip(elements, self._backend.find(elements)):
            problems += _difference(element, found, siblings)
        return problems

    def _find_host_interfaces(self, attachment: Attachment) -> None:
        """Find the interfaces to the container's published addresses; nothing else needs them."""
        for family in (4, 6):
            endpoint = attachment.published_endpoint(family)
            if endpoint is not None and any(mapping.serves(family) for mapping in attachment.port_mappings):
                endpoint.host_interface = interface_towards(endpoint.address)

    def _enable_forwarding(self, attachment: Attachment) -> None:
        for family in (4, 6):
            addresses = [e.address for e in attachment.endpoints if e.address.family == family]
            if addresses and not self._host.forwards(family):
                self._host.enable_forwarding(family, addresses)

    def _enable_route_localnet(self, attachment: Attachment) -> None:
        """Let 127.0.0.1 reach the container; chain `guard` is in place by now."""
        endpoint = attachment.published_endpoint(4)
        reachable = any(mapping.is_reached_from_loopback for mapping in attachment.port_mappings)
        if endpoint is not None and attachment.snat and reachable:
            self._host.enable_route_localnet(endpoint.host_interface)

    def _install(
        self, attachment_id: AttachmentId, elements: list[Element], replaced: list[Element]
    ) -> tuple[list[Element], list[Element]]:
        """Put the elements into the kernel, at once where nothing is in the way; return what was added and removed."""
        if self._backend.damaged_chains():
            self._heal(attachment_id)
        careful = bool(replaced)
        for _ in range(_ATTEMPTS):
            try:
                if careful:
                    return self._install_carefully(attachment_id, elements, replaced)
                self._backend.commit(add=elements, exclusive=True)
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
        found = self._backend.find(elements)
        wanted = [e for e, held in zip(elements, found) if held is None or self._may_take(attachment_id, e, held)]
        keys = {element.identity for element in wanted}
        removed = [held for held in found if held is not None and held.identity in keys]
        freed = [element for element in self._owned_by(attachment_id, replaced) if element.identity not in keys]
        added = wanted + self._heirs(attachment_id, freed)
        self._backend.commit(delete=removed + freed, add=added)
        return added, removed + freed

    def _may_take(self, attachment_id: AttachmentId, wanted: Element, held: Element) -> bool:
        """Whether a held key becomes ours. False: our own container holds the port by another network, and we wait.

        An address is whose it was given to last. A host port is its holder's, while that one lives.
        """
        if held.owner == attachment_id.owner or not wanted.is_host_port:
            return True
        if any(sibling.id.owner == held.owner for sibling in self.state.siblings(attachment_id)):
            return False
        holder = self._record_of(held.owner)
        if holder is not None and not is_alive(holder):
            return True
        raise _conflict(wanted, held, holder)

    def _record_of(self, owner: str) -> Attachment | None:
        """Return the record that an element's comment names; an abbreviated comment costs a search."""
        if "~" in owner:
            return next((a for a in self.state.attachments([]) if a.id.owner == owner), None)
        network, _, rest = owner.partition("/")
        container_id, _, interface = rest.partition("/")
        return self._readable_record(AttachmentId(network, container_id, interface)) if interface else None

    def _heal(self, newcomer: AttachmentId) -> None:
        """Build the table with everything that the records of others ask for."""
        damaged: list[CniError] = []
        others = [attachment for attachment in self.state.attachments(damaged) if attachment.id != newcomer]
        for error in damaged:
            _warn(error)
        build_table(plan_together(others))

    def _owned_by(self, attachment_id: AttachmentId, elements: list[Element]) -> list[Element]:
        """Return the elements that the kernel holds in this attachment's name."""
        return [found for found in self._backend.find(elements) if found and found.owner == attachment_id.owner]

    def _heirs(self, attachment_id: AttachmentId, freed: list[Element]) -> list[Element]:
        """Return what the container's other attachments put in the place of freed host ports."""
        ports = {element.identity for element in freed if element.is_host_port}
        if not ports:
            return []
        waiting = plan_together(self.state.siblings(attachment_id))
        return [element for element in waiting if element.identity in ports]

    def _release(self, find: Callable[[], list[Element]], attachment_id: AttachmentId | None = None) -> None:
        """Delete the elements that `find` finds, in one transaction; they may vanish under our feet."""
        for _ in range(_ATTEMPTS):
            elements = find()
            heirs = self._heirs(attachment_id, elements) if attachment_id else []
            try:
                self._backend.commit(delete=elements, add=heirs)
            except NotThere:
                continue
            return
        raise _too_restless(str(attachment_id or "garbage"))

    def _restore_record(self, attachment_id: AttachmentId, before: Attachment | None) -> None:
        if before is None:
            self.state.remove(attachment_id)
        else:
            self.state.write(before)


def is_alive(attachment: Attachment) -> bool:
    """Whether the network namespace that the attachment was made in still exists, under the same path."""
    return namespace_identity(attachment.netns) == attachment.netns_identity


def _is_valid(attachment: Attachment, valid: set[tuple[str, str]] | None) -> bool:
    if valid is None:
        return is_alive(attachment)
    return (attachment.id.container_id, attachment.id.interface) in valid


def _run_all(undo: list[Callable[[], None]], cause: BaseException) -> None:
    """Undo, last step first, and go on past a failure, which is added to what the runtime is told."""
    for step in reversed(undo):
        try:
            step()
        except CniError as error:
            cause.add_note(f"Undoing it failed too: {error.message}.")


def _warn(error: CniError) -> None:
    """Tell whoever reads the runtime's log; the call goes on."""
    posix.write(2, f"quantum-nat: {error.message}. {error.details}\n".encode())


def _difference(element: Element, found: Element | None, siblings: set[str]) -> list[str]:
    if found is None:
        return [f"element {element} is missing"]
    if found.owner == element.owner:
        return [] if found.data == element.data else [f"element {element} was changed to {found}"]
    if element.is_host_port and found.owner in siblings:
        return []  # the container has the port by another network
    return [f"element {element} belongs to {found.owner or 'nobody'}"]


def _conflict(wanted: Element, held: Element, holder: Attachment | None) -> HostPortConflict:
    *address, protocol, port = wanted.key
    where = f"{port}/{protocol}" + (f" on {address[0]}" if address else "")
    if holder is not None:
        return HostPortConflict(
            f"host port {where} is held by {holder.id}", "Publish another port, or remove that container first."
        )
    return HostPortConflict(
        f"host port {where} is held by {held.owner or 'an element of unknown owner'}, which has no record here",
        "If that container is gone, a GC of its network frees the port; another stateDir may hold its record.",
    )


def _too_restless(what: str) -> CniError:
    return CniError(
        TRY_AGAIN_LATER,
        f"table inet quantum changes faster than {what} can be worked on",
        "Find out what changes it: nft monitor.",
    )
