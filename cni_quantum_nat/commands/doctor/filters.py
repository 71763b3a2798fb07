"""Find what drops the packets that must pass: rules and policies of other programs, at every hook, each family by itself.

No table can overrule another's drop, so each chain is evaluated on its own.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ...model.addresses import Address
from ...model.attachments import LOCAL as LOOPBACK
from .chain import DEVICE
from .cures import cure, form_of, permit, strict_forward_ports
from .evaluate import EXEMPTS, HANDS_OVER, drops_of
from .finding import Finding
from .journeys import INBOUND, LATER, LOCAL, OUTBOUND, OUTSIDE_PORT, REPLY, REQUEST, Journey, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Endpoint
    from ...model.attachments import Inbound, PortMapping
    from .cures import Form, Permit
    from .evaluate import Fate
    from .matches import Packet
    from .paths import Path
    from .snapshot import Snapshot

_OUR_PRIORITY = {"prerouting": -110, "output": -110, "postrouting": 90, "input": 150}
_PORTS_END = 1 << 16
_MOST_CLASSES = 256
_VERBS = {
    EXEMPTS: "exempts from connection tracking, and so from translation, ",
    HANDS_OVER: "lets a program decide about ",
}


class Drop(NamedTuple):
    """Where packets end. certain: whether all of them do. some_only: whether it depends on the other end's address or port.

    phase: of the journey. form: what they are told by.
    """

    fate: Fate
    certain: bool
    some_only: bool
    phase: str
    form: Form | None


class Cause(NamedTuple):
    """A rule or policy, and what it drops. first: the traffic that is named. dropped: which connections, by container and port."""

    drop: Drop
    first: Journey
    dropped: set[tuple[str, str, str, int]]
    permits: dict[Permit, None]


def check_filters(host: Snapshot) -> Iterator[Finding]:
    """Find filters that drop traffic to or from containers."""
    for reason in host.foreign.unread if host.families else ():
        yield Finding(
            "the host's filters",
            f"cannot be read: {reason}",
            "Install iptables, which other programs use here.",
            certain=False,
        )
    causes: dict[tuple[str, int, bool, bool], Cause] = {}
    seen: dict[tuple[object, ...], list[Drop]] = {}
    for journey in must_pass(host) if host.foreign.has_hooks else ():
        alike = _class_of(host, journey)
        if alike not in seen:
            phases = (REQUEST, REPLY, LATER)
            seen[alike] = [drop for phase in phases for drop in _drops(host, journey._replace(phase=phase))]
        for drop in seen[alike]:
            key = (str(drop.fate.chain), drop.fate.number, drop.certain, drop.form is None)
            if key not in causes:
                causes[key] = Cause(drop, journey._replace(phase=drop.phase), set(), {})
            causes[key].dropped.add((journey.way.address, journey.kind, journey.protocol, journey.host_port))
            if drop.form is not None:
                causes[key].permits[permit(drop.form, journey)] = None
    # In one chain from the last to the first: the numbers of iptables' rules then stay right as the cures are run.
    for cause in sorted(
        causes.values(), key=lambda cause: (str(cause.drop.fate.chain), -(cause.drop.fate.number or 1 << 31))
    ):
        yield _finding(host, cause)


def _finding(host: Snapshot, cause: Cause) -> Finding:
    fate, certain = cause.drop.fate, cause.drop.certain
    others = f" and {len(cause.dropped) - 1} more" if len(cause.dropped) > 1 else ""
    verb = _VERBS.get(fate.verdict) or ("drops " if certain or cause.drop.some_only else "may drop ")
    problem = f"{fate.where} {verb}{cause.first}{others}"
    if cause.drop.some_only:
        problem += "; others may pass, which may be intended"
    if fate.chain.table == "inet firewalld" and cause.first.kind == INBOUND and strict_forward_ports():
        problem += " (StrictForwardPorts=yes in /etc/firewalld/firewalld.conf)"
    return Finding(str(fate.chain), problem, cure(host, fate, cause.permits, cause.first.way.external), certain=certain)


def must_pass(host: Snapshot) -> Iterator[Journey]:
    """Yield the connections that must work, each by its first packet."""
    ways = {(path.attachment.id, e.address): _way(host, path, e) for path in host.paths.all for e in path.endpoints}
    for attachment, mapping, family in host.published():
        endpoint = attachment.published_endpoint(family)
        way = ways.get((attachment.id, endpoint.address)) if endpoint else None
        if way is not None:
            yield from _published(host, way, mapping, attachment.inbound)
    for path in host.paths.all:
        for endpoint in path.endpoints:
            if endpoint.address.family in path.attachment.outbound.masquerade:
                yield Journey(OUTBOUND, ways[path.attachment.id, endpoint.address], "tcp", "", 0, OUTSIDE_PORT)


def _published(host: Snapshot, way: Way, mapping: PortMapping, inbound: Inbound) -> Iterator[Journey]:
    interfaces, clients = inbound.filters_of(mapping)
    specific = str(mapping.specific_host_ip or "")
    entered = _entered(host, way, interfaces)
    allowed = tuple(subnet for subnet in clients if subnet.family == way.family)
    for offset, size in _told_apart(host, mapping):
        ports = (mapping.host_port + offset, mapping.container_port + offset, size)
        if not mapping.on_loopback_only and entered is not None and bool(clients) == bool(allowed):
            yield Journey(INBOUND, entered, mapping.protocol, specific or entered.outer, *ports, allowed=allowed)
        if interfaces and LOOPBACK not in interfaces:
            continue
        if way.family == 4 and mapping.is_reached_from_loopback and way.gateway:
            yield Journey(LOCAL, way, mapping.protocol, "127.0.0.1", *ports)


def _entered(host: Snapshot, way: Way, interfaces: tuple[str, ...]) -> Way | None:
    """Return the way through an interface that the port is published on; None if there is none from outside."""
    if not interfaces or way.external in interfaces:
        return way
    for name in interfaces:
        if name not in (LOOPBACK, way.home) and name in host.paths.by_name:
            return way._replace(external=name, outer=host.outer_addresses.get((way.family, name), way.outer))
    return None


def _way(host: Snapshot, path: Path, endpoint: Endpoint) -> Way:
    family = endpoint.address.family
    home = path.home.name if path.home else endpoint.host_interface
    gateway = host.paths.gateway(path.home, endpoint) if path.home else None
    external = external_interface(host, family)
    return Way(
        family,
        home,
        path.veth.name if path.veth else home,
        external,
        str(endpoint.address),
        host.outer_addresses.get((family, external), ""),
        str(gateway.address) if gateway else "",
    )


def _told_apart(host: Snapshot, mapping: PortMapping) -> Iterator[tuple[int, int]]:
    """Yield the offset and the size of each row of a range of ports that other programs' rules treat alike, on the host and in the container."""
    of_both = (told_apart(host, first, mapping.size) for first in (mapping.host_port, mapping.container_port))
    offsets = sorted({offset for rows in of_both for offset, _ in rows})
    for first, following in pairwise([*offsets, mapping.size]):
        yield first, following - first


def told_apart(host: Snapshot, first: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the size of each row of a range of ports that other programs' rules treat alike."""
    boundaries = host.foreign.port_boundaries if size > 1 else ()
    starts = sorted({0, *(port - first for port in boundaries if first < port < first + size)})
    for start, following in pairwise([*starts, size]):
        yield start, following - start


def external_interface(host: Snapshot, family: int) -> str:
    """Return the interface of the default route, taken as the external one; empty if there is none."""
    return next(iter(host.external[family]), "")


def _class_of(host: Snapshot, journey: Journey) -> tuple[object, ...]:
    """Return what all journeys with the same fate have in common."""
    rules, w = host.foreign, journey.way
    addresses = (
        rules.address_class(one) if one else None for one in (w.address, w.outer, w.gateway, journey.host_address)
    )
    names = (rules.name_class(name) for name in (w.home, w.port, w.external))
    ports = (rules.port_class(journey.host_port), rules.port_class(journey.port))
    client = rules.address_class(journey.client)
    return (journey.kind, client, journey.allowed, journey.protocol, w.family, w.is_bridged, *addresses, *names, *ports)


def _drops(host: Snapshot, journey: Journey) -> Iterator[Drop]:
    for step in journey.steps():
        for chain in host.foreign.hooked(step.hook, journey.way.family, step.layer):
            if not step.first <= _place(chain.priority, chain.kind) <= step.last:
                continue
            if chain.kind == "nat" and (journey.phase != REQUEST or chain.priority >= _OUR_PRIORITY[step.hook]):
                continue  # only a connection's first packet meets it, and of that only what nobody has translated
            if step.layer == DEVICE and step.device not in chain.devices:
                continue
            fate, certain = drops_of(host.foreign, chain, step.packet)
            if fate is None or (fate.verdict == EXEMPTS and step.packet.state != "invalid"):
                continue
            some_only = certain and any(
                not drops_of(host.foreign, chain, packet)[1] for packet in _of_others(host, journey, step.packet)
            )
            yield Drop(fate, certain and not some_only, some_only, journey.phase, form_of(journey, step))


def _place(priority: int, kind: str) -> int:
    """Return where a chain is among the others: chains of type nat are all at one place, see journeys."""
    return priority if kind != "nat" else -100 if priority < 0 else 100


def _of_others(host: Snapshot, journey: Journey, packet: Packet) -> Iterator[Packet]:
    """Yield the same packet of or to other addresses outside, and to other ports there: one for each class that rules tell apart."""
    if journey.kind == LOCAL:
        return
    family = journey.way.family
    others = [address for address in host.foreign.addresses(family) if host.is_outside(address, journey.way.external)]
    if journey.allowed:
        others = [one for one in others if any(subnet.contains(Address.parse(one)) for subnet in journey.allowed)]
    ports = host.foreign.port_boundaries if journey.kind == OUTBOUND else []
    ports = [port for port in ports if 0 < port < _PORTS_END][:_MOST_CLASSES]
    if packet.source == journey.client:
        yield from (packet._replace(source=address) for address in others[:_MOST_CLASSES])
        yield from (packet._replace(source_port=port) for port in ports)
    elif packet.destination == journey.client:
        yield from (packet._replace(destination=address) for address in others[:_MOST_CLASSES])
        yield from (packet._replace(port=port) for port in ports)
