"""Live ports: publish and take back ports of a running container. Nothing that a runtime calls loads this module.

A live port is a mapping like any other, marked `live` on its container's record. What the runtime asks for and an operator has taken
back is `withdrawn` there. Both last as long as the container runs in its network namespace: ADD, CHECK and healing keep them, DEL ends
them. Each change gathers, decides and commits as ADD does.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from ..model.attachments import Attachment, AttachmentId
from ..model.errors import HostPortConflict, InvalidConfiguration
from ..model.ranges import join, share
from ..ports.mappings import check_localhost, parse_entry
from .decision import ELSEWHERE, IN_FORCE, OVER, UNCERTAIN
from .manager import NatManager, run_all
from .records import standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..connections.tracker import ConnectionTracker
    from ..model.addresses import Address
    from ..model.attachments import PortMapping
    from ..model.settings import Settings
    from .decision import Decision, Facts


class PublishedPort:
    """Which published port is meant: host ports of a protocol, and of one host address unless `host_ip` is None."""

    __slots__ = ("first", "host_ip", "last", "protocol")

    def __init__(self, protocol: str, first: int, last: int, host_ip: Address | None = None) -> None:
        self.protocol = protocol
        self.first = first
        self.last = last
        self.host_ip = host_ip

    def is_of(self, mapping: PortMapping) -> bool:
        """Whether a mapping has any of these ports."""
        if self.protocol != mapping.protocol or self.last < mapping.host_port or mapping.last_host_port < self.first:
            return False
        return self.host_ip is None or self.host_ip == mapping.host_ip

    def contains(self, mapping: PortMapping) -> bool:
        """Whether all ports of a mapping are among these."""
        return self.is_of(mapping) and self.first <= mapping.host_port and mapping.last_host_port <= self.last

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.protocol}" + ("" if self.host_ip is None else f" on {self.host_ip}")


class LivePorts(NatManager):
    """The NAT Manager, with changes of running containers. Use it in `with`, with a state directory that exists."""

    def publish(self, identity: AttachmentId, mappings: list[PortMapping], settings: Settings) -> list[PortMapping]:
        """Publish ports of a running container, and return the mappings as recorded. Publishing again changes nothing.

        Raises:
            CniError: (7) it does not run here, has no address for a port, or began with other clients than its network allows by now;
                (100) a host port is in use. Nothing has changed then.
        """
        facts = self._gather(identity)
        before = self._require_running(identity, facts)
        asked = join(mappings)
        _require_address(before, asked)
        wanted = copy_of(before)
        missing = self._take_back_or_make(wanted, asked)
        if missing:
            self._refuse_other_clients(before, settings)
            alone = copy_of(before)
            alone.port_mappings = [p for m in missing for p in share(m, settings.shared_ports, settings.sharing)]
            self._refuse_siblings(alone, facts)
            self._require_free(alone, facts, settings)
            wanted.port_mappings = sorted([*wanted.port_mappings, *alone.port_mappings], key=lambda m: m.live)
            self._change([(wanted, facts)], alone.port_mappings)
        return [m for m in wanted.port_mappings if any(m.is_same_port(mapping, {4, 6}) for mapping in asked)]

    def unpublish(self, container_id: str, port: PublishedPort, *, drain: bool = False) -> list[PortMapping]:
        """Take back a published port of a container, from all its networks; return the mappings.

        drain: leave connections that are open. Without it, their conntrack entries are deleted.

        Raises:
            CniError: (7) the container does not run here, or has no such port. Nothing has changed then.
        """
        changes: list[tuple[Attachment, Facts]] = []
        taken: list[tuple[Attachment, list[PortMapping]]] = []
        for record in self._attachments_of(container_id):
            facts = self._gather(record.id)
            before = self._require_running(record.id, facts)
            wanted = copy_of(before)
            found = withdraw(wanted, port, self.state.option)
            if found:
                taken.append((before, found))
                changes.append((wanted, facts))
        if not taken:
            raise InvalidConfiguration(
                f"container {container_id} does not publish host port {port}",
                f"See what it publishes: quantum-nat {self.state.option}port {container_id}",
            )
        # Those that wait for the port first: it must not be given to them.
        changes.sort(key=lambda change: not change[0].waits_for)
        self._change(changes, [])
        for before, found in taken if not drain else ():
            self._delete_entries_of(before, found)
        return [mapping for _, found in taken for mapping in found]

    def _attachments_of(self, container_id: str) -> list[Attachment]:
        """Return the attachments of a container that are in force, or may be. CniError(7) if there are none."""
        recorded = self.state.siblings(AttachmentId("", container_id, ""))
        found = [record for record in recorded if standing(record, self._here) in (IN_FORCE, UNCERTAIN)]
        if not found:
            raise InvalidConfiguration(
                f"container {container_id} does not run on this host",
                f"List what is on record: quantum-nat {self.state.option}list",
            )
        return sorted(found, key=lambda record: (record.sequence, record.created_at))

    def _require_running(self, identity: AttachmentId, facts: Facts) -> Attachment:
        """Return the attachment's record. InvalidConfiguration unless it runs here, and its runtime knows it."""
        before = facts.before or facts.elsewhere
        if before is None:
            raise InvalidConfiguration(
                f"{identity} is not on record",
                f"List what is: quantum-nat {self.state.option}list",
            )
        if not before.netns:
            raise InvalidConfiguration(
                f"{identity} was made with the Python API, not by a runtime",
                "Publish its ports with NatManager.create_port_mapping, and remove them with remove_port_mapping.",
            )
        found = standing(before, self._here)
        if found == ELSEWHERE:
            raise InvalidConfiguration(
                f"{identity} has its rules in another network namespace of the host", "Run this command there."
            )
        if found == OVER:
            raise InvalidConfiguration(
                f"{identity} does not run any more: its network namespace {before.netns} is gone",
                f"Remove what it left: quantum-nat {self.state.option}gc",
            )
        if found == UNCERTAIN:
            raise InvalidConfiguration(
                f"cannot tell from this mount namespace whether {identity} still runs: its network namespace is {before.netns}",
                "Run this command on the host, outside any container.",
            )
        return before

    def _take_back_or_make(self, wanted: Attachment, asked: list[PortMapping]) -> list[PortMapping]:
        """Return the mappings that are not published yet: those that were withdrawn, and new ones.

        Raises: HostPortConflict when the container uses a port otherwise.
        """
        families = {endpoint.address.family for endpoint in wanted.endpoints}
        missing: list[PortMapping] = []
        for mapping in asked:
            used = [m for m in wanted.port_mappings if m.is_same_port(mapping, families)]
            if any(_is_same(m, mapping) for m in used):
                continue
            if used:
                raise HostPortConflict(
                    f"host port {used[0].host_range}/{used[0].protocol} is already published by {wanted.id}, as {used[0]}",
                    f"Publish another port, or take that one back first: quantum-nat {self.state.option}unpublish "
                    f"{wanted.id.container_id} {_named(used[0])}",
                )
            gone = next((m for m in wanted.withdrawn if _is_same(m, mapping)), None)
            if gone is None:
                mapping.live, mapping.created_at = True, time.time()
                for former in wanted.withdrawn:
                    if former.is_same_port(
                        mapping, families
                    ):  # the clients that the runtime named for the host port stay
                        mapping.publish_on, mapping.allow_from = former.filters
            missing.append(gone or mapping)
        wanted.withdrawn = [m for m in wanted.withdrawn if m not in missing]
        return missing

    def _refuse_other_clients(self, before: Attachment, settings: Settings) -> None:
        """Refuse a port that would be open to others than the network's configuration says by now: an attachment keeps what it began with."""
        now, then = settings.inbound, before.inbound
        if (now.publish_on, now.allow_from) != (then.publish_on, then.allow_from):
            raise InvalidConfiguration(
                f"network {before.id.network} has another publishOn or allowFrom since {before.id} was added",
                "Start the container again, or let its runtime add it again: then it has the network's settings.",
            )

    def _refuse_siblings(self, attachment: Attachment, facts: Facts) -> None:
        """Refuse a port that leads to the container already by another of its networks: it would go on leading there."""
        for sibling in facts.others:
            for port in attachment.host_ports:
                if facts.ports_of(sibling).of(port):
                    raise HostPortConflict(
                        f"host port {port} is already published by {sibling.id}",
                        f"Publish another port, or take that one back first: quantum-nat {self.state.option}unpublish "
                        f"{sibling.id.container_id} {port.ports}/{port.protocol}",
                    )

    def _change(self, changes: list[tuple[Attachment, Facts]], published: Iterable[PortMapping]) -> None:
        """Commit new versions of attachments; if one fails, everything is as it was."""
        undo: list[Callable[[], None]] = []
        done: list[tuple[Attachment, Decision]] = []
        try:
            for wanted, facts in changes:
                self._find_host_interfaces(wanted)
                for other, _ in done:  # the others of the container have changed
                    facts.others = [other if record.id == other.id else record for record in facts.others]
                done.append((wanted, self._commit(wanted, facts, undo, ip_forwarding=False)))
        except BaseException as error:
            run_all(undo, error)
            raise
        for wanted, decision in done:
            self._conclude(wanted, decision, published)

    def _delete_entries_of(self, attachment: Attachment, mappings: list[PortMapping]) -> None:
        for family in attachment.published_families:
            endpoint = attachment.published_endpoint(family)
            if endpoint is not None:
                address = endpoint.address
                self._afterwards.append(partial(_delete_published, address=address, mappings=mappings))


def mapping_of(
    attachment: Attachment, protocol: str, host_port: int, container_port: int, host_ip: Address | None = None
) -> PortMapping:
    """Return a mapping for a port of an attachment. InvalidConfiguration if a value is not valid."""
    entry = {"hostPort": host_port, "containerPort": container_port, "protocol": protocol}
    mapping = parse_entry("port mapping", {**entry, "hostIP": None if host_ip is None else str(host_ip)})
    if not attachment.inbound.ipv6_localhost:
        check_localhost([mapping])
    return mapping


def _delete_published(tracker: ConnectionTracker, address: Address, mappings: list[PortMapping]) -> None:
    tracker.delete_published(address, mappings)


def withdraw(attachment: Attachment, port: PublishedPort, option: str = "") -> list[PortMapping]:
    """Take mappings from an attachment, and return them; those that the runtime asked for are noted as withdrawn.

    option: that names the state directory in a command, see State.option.

    Raises: InvalidConfiguration when only a part of a range is meant.
    """
    found = [mapping for mapping in attachment.port_mappings if port.is_of(mapping)]
    for mapping in found:
        if not port.contains(mapping):
            raise InvalidConfiguration(
                f"host port {port} is a part of the range {mapping.host_range}/{mapping.protocol} of {attachment.id}, "
                "which is taken back as a whole",
                f"Take back the range: quantum-nat {option}unpublish {attachment.id.container_id} {_named(mapping)}",
            )
    attachment.port_mappings = [mapping for mapping in attachment.port_mappings if mapping not in found]
    attachment.withdrawn = [*attachment.withdrawn, *(mapping for mapping in found if not mapping.live)]
    return found


def copy_of(record: Attachment) -> Attachment:
    """Return what the next generation of an attachment begins with."""
    copy = Attachment.from_record(record.as_record())
    copy.had_earlier = True
    for endpoint in copy.endpoints:
        endpoint.host_interface = ""  # as at an ADD: it is looked up where ports are published
    return copy


def _named(mapping: PortMapping) -> str:
    """Return a mapping's host ports as arguments of `unpublish`."""
    address = "" if mapping.host_ip is None else f" --host-ip {mapping.host_ip}"
    return f"{mapping.host_range}/{mapping.protocol}{address}"


def _is_same(one: PortMapping, other: PortMapping) -> bool:
    return str(one) == str(other)


def _require_address(attachment: Attachment, mappings: list[PortMapping]) -> None:
    families = {endpoint.address.family for endpoint in attachment.endpoints}
    for mapping in mappings:
        if not any(map(mapping.serves, families)):
            family = 4 if 6 in families else 6
            raise InvalidConfiguration(
                f"host address {mapping.host_ip} is IPv{family}, and {attachment.id} has no IPv{family} address",
                "Publish it on an address of the container's family, or on all: leave out --host-ip.",
            )
