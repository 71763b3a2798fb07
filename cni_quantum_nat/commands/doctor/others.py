"""Checks of other programs on this host: filters, NAT of other plugins, services."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ...model.errors import HostPortConflict
from ...ports.allocation import check_host_listeners
from .evaluate import Packet, drops_of, fates
from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .chains import Chain
    from .evaluate import Fate
    from .snapshot import Snapshot

_OUR_PRIORITY = -110
_DNATTED = frozenset({"dnat"})
_OUTSIDE = {
    4: "9.9.9.9",
    6: "2620:fe::fe",
}  # public addresses: filters often drop reserved ones
_FILTERS = (  # part of the name of a chain or table, and how to let traffic through that program's filter
    ("firewalld", "firewall-cmd --permanent --zone=trusted --add-interface={interface}; firewall-cmd --reload"),
    ("ufw", "ufw route allow in on {external} out on {interface}; ufw route allow in on {interface}"),
    ("FORWARD", "iptables -I {user} -i {interface} -j ACCEPT; iptables -I {user} -o {interface} -j ACCEPT"),
)
_TRANSLATORS = (
    ("cni_hostport", "portmap"),
    ("CNI-", "portmap"),
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("netavark", "netavark"),
    ("NETAVARK", "netavark"),
    ("crio", "CRI-O"),
    ("KUBE-", "kube-proxy"),
    ("kube-proxy", "kube-proxy"),
)


def check_forward_filters(host: Snapshot) -> Iterator[Finding]:
    """Find filters that drop forwarded traffic to or from containers: no table can overrule another's drop."""
    for reason in host.foreign.unread if host.families else ():
        yield Finding(
            "the host's filters", f"cannot be read: {reason}", "Install iptables, which other programs use here."
        )
    reported = set()
    for what, packet in _forwarded(host):
        for chain in host.foreign.hooked("forward", packet.family):
            drop, certain = drops_of(host.foreign, chain, packet)
            if drop is not None and (str(drop.chain), drop.where, packet.family) not in reported:
                reported.add((str(drop.chain), drop.where, packet.family))
                yield _dropped(host, what, packet, drop, certain=certain)


def _forwarded(host: Snapshot) -> Iterator[tuple[str, Packet]]:
    """Yield the traffic that should pass, as text and as a packet."""
    external = {family: external_interface(host, family) for family in (4, 6)}
    for attachment, mapping, family in host.published():
        endpoint = attachment.published_endpoint(family)
        if endpoint is None or mapping.on_loopback_only:
            continue
        inside, address = host.interface_of(attachment, family), str(endpoint.address)
        kind = mapping.protocol
        for port, ports in _told_apart(host, mapping.container_port, mapping.size):
            host_ports = mapping.host_port if mapping.size == 1 else ports
            what = f"connections to host port {host_ports}/{kind} ({address}:{ports})"
            yield what, Packet(family, external[family], inside, "", address, kind, port, "new", _DNATTED)
        yield (
            f"replies from {address}",
            Packet(family, inside, external[family], address, "", kind, None, "established"),
        )
    for attachment in host.living:
        for endpoint in attachment.endpoints:
            family = endpoint.address.family
            if family in attachment.outbound.masquerade and not attachment.is_network:
                inside = host.interface_towards(endpoint.address) or endpoint.host_interface
                goal = _OUTSIDE[family]
                yield (
                    f"connections from {endpoint.address} (for example to {goal})",
                    Packet(family, inside, external[family], str(endpoint.address), goal, "tcp", None),
                )


def _told_apart(host: Snapshot, first: int, size: int) -> Iterator[tuple[int, str]]:
    """Yield ports that stand for all of a range: the first of each row that other programs' rules treat alike, with the row as text."""
    boundaries = host.foreign.port_boundaries if size > 1 else ()
    starts = sorted({first, *(port for port in boundaries if first < port < first + size)})
    for start, following in pairwise([*starts, first + size]):
        yield start, str(start) if following - start == 1 else f"{start}-{following - 1}"


def external_interface(host: Snapshot, family: int) -> str:
    """Return the interface of the default route, taken as the external one; empty if there is none."""
    return next((route.interface for route in host.routes if route.family == family), "")


def _dropped(host: Snapshot, what: str, packet: Packet, fate: Fate, *, certain: bool) -> Finding:
    table = fate.chain.table
    makers = " ".join((table, *(name for of_table, name in host.foreign.chains if of_table == table)))
    external = external_interface(host, packet.family)
    inside = packet.outgoing if packet.status else packet.incoming
    user = "DOCKER-USER" if (table, "DOCKER-USER") in host.foreign.chains else "FORWARD"
    remedy = next((text for name, text in _FILTERS if name in makers), "Allow traffic from and to {interface} there.")
    return Finding(
        str(fate.chain),
        f"{fate.where} {'drops' if certain else 'may drop'} {what}",
        remedy.format(interface=inside, external=external, user=user),
    )


def check_translators(host: Snapshot) -> Iterator[Finding]:
    """Find programs that also translate one of our host ports, to another target."""
    for attachment, mapping, family in host.published():
        endpoint = attachment.published_endpoint(family)
        specific = mapping.specific_host_ip
        destination = str(specific) if specific else ""
        external = external_interface(host, family)
        for port, ports in _told_apart(host, mapping.host_port, mapping.size):
            packet = Packet(family, external, "", "", destination, mapping.protocol, port)
            for chain in host.foreign.hooked("prerouting", family):
                for fate in fates(host.foreign, chain, packet)[0]:
                    if fate.verdict.startswith("dnat") and endpoint and str(endpoint.address) not in fate.verdict:
                        yield _translated_twice(fate, chain, f"{ports}/{mapping.protocol}", str(attachment.id))


def _translated_twice(fate: Fate, entered: Chain, port: str, owner: str) -> Finding:
    maker = next(
        (who for part, who in _TRANSLATORS if part in f"{fate.chain.table} {fate.chain.name}"), "another program"
    )
    winner = maker if entered.priority < _OUR_PRIORITY else "Quantum NAT"
    return Finding(
        str(fate.chain),
        f"{maker} also translates host port {port}, which {owner} publishes; {winner} takes precedence",
        f"Remove the port from {maker}, or publish another one.",
    )


def check_services(host: Snapshot) -> Iterator[Finding]:
    """Find processes on the host that listen on a published port, and get no connections."""
    for attachment in host.living:
        if not attachment.published_families:
            continue
        try:
            check_host_listeners(attachment, lambda: None)
        except HostPortConflict as conflict:
            yield Finding(
                str(attachment.id), conflict.message, "Let the process listen on another port, or publish another one."
            )
