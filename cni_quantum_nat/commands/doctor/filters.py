"""Find what drops the packets that must pass: rules and policies of other programs, at every hook, each family by itself.

No table can overrule another's drop, so each chain is evaluated on its own.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from .chains import DEVICE
from .cures import cure, permit, strict_forward_ports
from .evaluate import EXEMPTS, HANDS_OVER, drops_of
from .finding import Finding
from .journeys import INBOUND, LATER, LOCAL, OUTBOUND, OUTSIDE, OUTSIDE_PORT, REPLY, REQUEST, Journey, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Endpoint
    from ...model.attachments import PortMapping
    from .evaluate import Fate
    from .journeys import Step
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
    """Where packets end. certain: whether all of them do. some_only: whether it depends on the other end's address or port. number: of the step."""

    fate: Fate
    certain: bool
    some_only: bool
    number: int


class Cause(NamedTuple):
    """A rule or policy, and the traffic that it drops, as text and as packets."""

    drop: Drop
    what: list[str]
    dropped: list[tuple[Journey, Step]]


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
    for what, journey in must_pass(host):
        alike = _class_of(host, journey)
        if alike not in seen:
            seen[alike] = list(_drops(host, journey))
        steps = list(journey.steps()) if seen[alike] else []
        for drop in seen[alike]:
            step = steps[drop.number]
            key = (str(drop.fate.chain), drop.fate.number, drop.certain, permit(journey, step) is None)
            cause = causes.setdefault(key, Cause(drop, [], []))
            if what not in cause.what and (journey.phase != LATER or not cause.what):
                cause.what.append(what)
            cause.dropped.append((journey, step))
    # In one chain from the last to the first: the numbers of iptables' rules then stay right as the cures are run.
    for cause in sorted(
        causes.values(), key=lambda cause: (str(cause.drop.fate.chain), -(cause.drop.fate.number or 1 << 31))
    ):
        yield _finding(host, cause)


def _finding(host: Snapshot, cause: Cause) -> Finding:
    fate, certain = cause.drop.fate, cause.drop.certain
    others = f" and {len(cause.what) - 1} more" if len(cause.what) > 1 else ""
    verb = _VERBS.get(fate.verdict) or ("drops " if certain or cause.drop.some_only else "may drop ")
    problem = f"{fate.where} {verb}{cause.what[0]}{others}"
    if cause.drop.some_only:
        problem += "; others may pass, which may be intended"
    if fate.chain.table == "inet firewalld" and cause.dropped[0][0].kind == INBOUND and strict_forward_ports():
        problem += " (StrictForwardPorts=yes in /etc/firewalld/firewalld.conf)"
    return Finding(str(fate.chain), problem, cure(host, fate, cause.dropped), certain=certain)


def must_pass(host: Snapshot) -> Iterator[tuple[str, Journey]]:
    """Yield the traffic that must pass, as text and as a journey."""
    ways = {(path.attachment.id, e.address): _way(host, path, e) for path in host.paths.all for e in path.endpoints}
    for attachment, mapping, family in host.published():
        endpoint = attachment.published_endpoint(family)
        way = ways.get((attachment.id, endpoint.address)) if endpoint else None
        if way is not None:
            yield from _published(host, way, mapping)
    for path in host.paths.all:
        for endpoint in path.endpoints:
            if endpoint.address.family in path.attachment.outbound.masquerade:
                yield from _sent_out(ways[path.attachment.id, endpoint.address])


def _published(host: Snapshot, way: Way, mapping: PortMapping) -> Iterator[tuple[str, Journey]]:
    specific = str(mapping.specific_host_ip or "")
    for offset, host_ports, ports in _told_apart(host, mapping):
        protocol, port = mapping.protocol, mapping.container_port + offset
        leads_to = f"host port {host_ports}/{protocol} ({way.address}:{ports})"
        host_port = mapping.host_port + offset
        if not mapping.on_loopback_only:
            journey = Journey(INBOUND, way, protocol, specific or way.outer, host_port, port)
            yield from _both_ways(f"connections to {leads_to}", f"replies from {way.address}", journey)
        if way.family == 4 and mapping.is_reached_from_loopback and way.gateway:
            journey = Journey(LOCAL, way, protocol, "127.0.0.1", host_port, port)
            what = f"connections from this host to 127.0.0.1, {leads_to}"
            yield from _both_ways(what, f"replies from {way.address} to this host", journey)


def _sent_out(way: Way) -> Iterator[tuple[str, Journey]]:
    journey = Journey(OUTBOUND, way, "tcp", "", 0, OUTSIDE_PORT)
    what = f"connections from {way.address} (for example to {OUTSIDE[way.family]})"
    yield from _both_ways(what, f"replies from outside to {way.address}", journey)


def _both_ways(what: str, replies: str, journey: Journey) -> Iterator[tuple[str, Journey]]:
    yield what, journey
    yield replies, journey._replace(phase=REPLY)
    yield f"all but the first packet of {what}", journey._replace(phase=LATER)


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


def _told_apart(host: Snapshot, mapping: PortMapping) -> Iterator[tuple[int, str, str]]:
    """Yield offsets that stand for all of a range: the first of each row of ports that other programs' rules treat alike, with both rows as text."""
    offsets = [offset for offset, _ in told_apart(host, mapping.host_port, mapping.size)]
    offsets = sorted({*offsets, *(offset for offset, _ in told_apart(host, mapping.container_port, mapping.size))})
    for first, following in pairwise([*offsets, mapping.size]):
        yield (
            first,
            row(mapping.host_port + first, following - first),
            row(mapping.container_port + first, following - first),
        )


def told_apart(host: Snapshot, first: int, size: int) -> Iterator[tuple[int, str]]:
    """Yield an offset for each row of a range of ports that other programs' rules treat alike, and the row as text."""
    boundaries = host.foreign.port_boundaries if size > 1 else ()
    starts = sorted({0, *(port - first for port in boundaries if first < port < first + size)})
    for start, following in pairwise([*starts, size]):
        yield start, row(first + start, following - start)


def row(first: int, size: int) -> str:
    """Return ports in a row as text."""
    return str(first) if size == 1 else f"{first}-{first + size - 1}"


def external_interface(host: Snapshot, family: int) -> str:
    """Return the interface of the default route, taken as the external one; empty if there is none."""
    return next((route.interface for route in host.routes if route.family == family), "")


def _class_of(host: Snapshot, journey: Journey) -> tuple[object, ...]:
    """Return what all journeys with the same fate have in common."""
    rules, w = host.foreign, journey.way
    addresses = (
        rules.address_class(one) if one else None for one in (w.address, w.outer, w.gateway, journey.host_address)
    )
    names = (rules.name_class(name) for name in (w.home, w.port, w.external))
    ports = (rules.port_class(journey.host_port), rules.port_class(journey.port))
    return (journey.kind, journey.phase, journey.protocol, w.family, w.is_bridged, *addresses, *names, *ports)


def _drops(host: Snapshot, journey: Journey) -> Iterator[Drop]:
    for number, step in enumerate(journey.steps()):
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
            yield Drop(fate, certain and not some_only, some_only, number)


def _place(priority: int, kind: str) -> int:
    """Return where a chain is among the others: chains of type nat are all at one place, see journeys."""
    return priority if kind != "nat" else -100 if priority < 0 else 100


def _of_others(host: Snapshot, journey: Journey, packet: Packet) -> Iterator[Packet]:
    """Yield the same packet of or to other addresses outside, and to other ports there: one for each class that rules tell apart."""
    if journey.kind == LOCAL:
        return
    family = journey.way.family
    others = [address for address in host.foreign.addresses(family) if host.is_outside(address, journey.way.external)]
    ports = host.foreign.port_boundaries if journey.kind == OUTBOUND else []
    ports = [port for port in ports if 0 < port < _PORTS_END][:_MOST_CLASSES]
    if packet.source == journey.client:
        yield from (packet._replace(source=address) for address in others[:_MOST_CLASSES])
        yield from (packet._replace(source_port=port) for port in ports)
    elif packet.destination == journey.client:
        yield from (packet._replace(destination=address) for address in others[:_MOST_CLASSES])
        yield from (packet._replace(port=port) for port in ports)
