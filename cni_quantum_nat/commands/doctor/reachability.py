"""Checks of each container's path: its own side, the host's interfaces, addresses, routes."""

from __future__ import annotations

from errno import EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH, EXDEV
from shlex import quote
from typing import TYPE_CHECKING

from .finding import Finding
from .network import find_refusal
from .paths import OUTSIDE, Causes, Path, Paths
from .snapshot import sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Address, Endpoint
    from .network import Link, Routing
    from .snapshot import Snapshot

_REFUSED = (EACCES, EHOSTUNREACH, EINVAL)
_AND = " && "


def check_containers(host: Snapshot) -> Iterator[Finding]:
    """Check the container's own side: its interface is up, it has its addresses, and a route to the outside."""
    for path in host.paths.all:
        inside = path.inside
        if inside is None:
            continue
        where = str(path.attachment.id)
        if inside.error:
            yield Finding(where, inside.error, "Run doctor as root, in the host's mount namespace.", certain=False)
            continue
        own = inside.links.get(path.attachment.id.interface)
        if own is None:
            gone = f"its interface {path.attachment.id.interface} is gone from its network namespace"
            yield Finding(where, gone, "Restart the container.")
            continue
        problems, commands = _inside_problems(host.paths, path, own)
        if problems:
            enter = f"nsenter --net={quote(path.attachment.netns)} -- "
            yield Finding(where, "; ".join(problems), _AND.join(f"{enter}{command}" for command in commands))


def _inside_problems(paths: Paths, path: Path, own: Link) -> tuple[list[str], list[str]]:
    assert path.inside is not None  # noqa: S101 - for the type checker
    problems, commands = [], []
    if not own.is_up:
        problems.append(f"its interface {own.name} is down")
        commands.append(f"ip link set {own.name} up")
    for endpoint in path.endpoints:
        family = endpoint.address.family
        lost = (own.name, str(endpoint.address)) not in path.inside.addresses
        if lost:
            problems.append(f"its address {endpoint.address} is missing from {own.name}")
            nodad = " nodad" if family == 6 else ""
            commands.append(f"ip address add {endpoint} dev {own.name}{nodad}")
        if not path.inside.leads_out.get(family, True):
            problems.append(f"it has no IPv{family} default route")
            commands += _default_route(paths, path, endpoint)
    return problems, commands


def _default_route(paths: Paths, path: Path, endpoint: Endpoint) -> list[str]:
    gateway = paths.gateway(path.home, endpoint) if path.home else None
    if gateway is None:
        return []
    ip = "ip -6" if endpoint.address.family == 6 else "ip"
    return [f"{ip} route replace default via {gateway.address} dev {path.attachment.id.interface}"]


def check_links(host: Snapshot) -> Iterator[Finding]:
    """Check the host's interfaces towards containers: they exist, are up, and are in their bridge."""
    causes = Causes()
    for path in host.paths.all:
        affected = str(path.attachment.id)
        if path.recorded_home and path.home is None:
            where = f"interface {path.recorded_home}"
            causes.add(where, "it is gone", "Restart the containers.", affected)
        for link in dict.fromkeys(link for link in (path.home, path.veth) if link is not None):
            if not link.is_up:
                causes.add(f"interface {link.name}", "it is down", f"ip link set {link.name} up", affected)
        _add_port_causes(path, causes)
    yield from (Finding(*cause[:3], certain=cause[3]) for cause in causes)


def _add_port_causes(path: Path, causes: Causes) -> None:
    veth, home, affected = path.veth, path.home, str(path.attachment.id)
    if veth is None or home is None or home == veth or not veth.is_up or not home.is_up:
        return
    where = f"bridge port {veth.name}"
    if home.kind == "bridge" and veth.master != home.number:
        remedy = f"ip link set {veth.name} master {home.name}"
        if "1" in (sysctl(f"bridge/bridge-nf-call-{name}") for name in ("iptables", "ip6tables")):
            remedy += f"{_AND}bridge link set dev {veth.name} hairpin on"  # a port that leaves its bridge loses it
        causes.add(where, f"it is not in {home.name}", remedy, affected)


def check_addresses(host: Snapshot) -> Iterator[Finding]:
    """Check that the host has the containers' gateway addresses, and the fixed source addresses."""
    causes = Causes()
    with host.paths.routes() as routing:
        for path in host.paths.all:
            for endpoint in path.endpoints:
                _add_lost_gateway(host.paths, path, endpoint, routing, causes)
    for path in host.paths.all:
        for address in path.attachment.outbound.snat_addresses.values():
            _add_lost_source(host.paths, path, address, causes)
    yield from (Finding(*cause[:3], certain=cause[3]) for cause in causes)


def _add_lost_gateway(paths: Paths, path: Path, endpoint: Endpoint, routing: Routing, causes: Causes) -> None:
    if path.home is None or path.veth is None or paths.gateway(path.home, endpoint) is not None:
        return
    if routing.look_up(endpoint.address).outgoing == path.home.number:
        return  # a route of another kind leads there, as with ptp
    home, family, subnet = path.home, endpoint.address.family, endpoint.network
    first = bytearray(subnet.first.packed)
    first[-1] |= 1  # what IPAM plugins take, unless told otherwise
    gateway = type(endpoint.address)(family, bytes(first))
    nodad = " nodad" if family == 6 else ""
    where, cause = (
        f"interface {home.name}",
        f"it has no address in {subnet}, so the host has no route to its containers",
    )
    if home == path.veth:
        ip = "ip -6" if family == 6 else "ip"
        causes.add(
            where,
            f"no route leads to {endpoint.address}",
            f"{ip} route add {endpoint.address} dev {home.name}",
            str(path.attachment.id),
        )
        return
    remedy = f"ip address add {gateway}/{subnet.prefix_length} dev {home.name}{nodad}"
    if not home.is_up:
        remedy = f"ip link set {home.name} up{_AND}{remedy}"
    causes.add(where, cause, remedy, str(path.attachment.id))


def _add_lost_source(paths: Paths, path: Path, address: Address, causes: Causes) -> None:
    if address in paths.local:
        return
    names = path.attachment.outbound.external_interfaces.get(address.family) or paths.external[address.family]
    where, affected = f"source address {address}", str(path.attachment.id)
    connected = next((one for one in paths.addresses if one.subnet.contains(address)), None)
    if connected is not None:
        interface = paths.links[connected.number].name
        nodad = " nodad" if address.family == 6 else ""
        remedy = f"ip address add {address}/{len(address.packed) * 8} dev {interface}{nodad}"
        causes.add(where, "it is not an address of this host: replies to it are not answered", remedy, affected)
        return
    remedy = f"ip address add {address}/{len(address.packed) * 8} dev {names[0] if names else 'lo'}"
    cause = "it is not an address of this host, and doctor cannot tell whether the network routes it here"
    causes.add(where, cause, remedy, affected, certain=False)


def check_routes(host: Snapshot) -> Iterator[Finding]:
    """Check that the host routes packets to each container, and onwards from it, by asking the kernel."""
    causes = Causes()
    with host.paths.routes() as routing:
        for path in host.paths.all:
            if path.home is None or not path.is_ready:
                continue
            for endpoint in path.endpoints:
                if sysctl(_FORWARDING[endpoint.address.family]) == "1":  # otherwise that is the finding
                    _add_route_causes(host.paths, path, path.home, endpoint, routing, causes)
    yield from (Finding(*cause[:3], certain=cause[3]) for cause in causes)


_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def _add_route_causes(  # noqa: PLR0913, PLR0917 - what it looks at, and where it notes the result
    paths: Paths, path: Path, home: Link, endpoint: Endpoint, routing: Routing, causes: Causes
) -> None:
    address, family, affected = endpoint.address, endpoint.address.family, str(path.attachment.id)
    if paths.gateway(home, endpoint) is None and home.kind == "bridge":
        return  # check_addresses
    direct = routing.look_up(address)
    if direct.error_number in _REFUSED:
        _add_refusal(address, None, "", affected, causes)
        return
    if direct.outgoing and direct.outgoing != home.number:
        _add_detour(paths, endpoint, home, direct.outgoing, affected, causes)
        return
    for name in paths.external[family]:
        for destination, source, link in (
            (address, OUTSIDE[family], paths.by_name[name]),
            (OUTSIDE[family], address, home),
        ):
            answer = routing.look_up(destination, source, link.number)
            _judge(answer.error_number, destination, source, link.name, affected, causes)


def _judge(  # noqa: PLR0913, PLR0917 - a packet, and where to note what becomes of it
    error_number: int, destination: Address, source: Address, incoming: str, affected: str, causes: Causes
) -> None:
    """Note why the kernel does not route a packet that arrives at an interface."""
    if error_number == EXDEV:
        remedy = f"sysctl -w net.ipv4.conf.{incoming}.rp_filter=2"
        cause = f"rp_filter is strict, and replies to {source} leave by another interface: packets that arrive here are dropped"
        causes.add(f"interface {incoming}", cause, remedy, affected)
    elif error_number in _REFUSED:
        if destination.family == 4 and sysctl(f"ipv4/conf/{incoming}/forwarding") == "0":
            cause = "forwarding is off for it: packets that arrive here are dropped"
            causes.add(f"interface {incoming}", cause, f"sysctl -w net.ipv4.conf.{incoming}.forwarding=1", affected)
        else:
            _add_refusal(destination, source, incoming, affected, causes)
    elif error_number == ENETUNREACH and find_refusal(destination, source, incoming):  # a rule, not a lack of routes
        _add_refusal(destination, source, incoming, affected, causes)


def _add_refusal(destination: Address, source: Address | None, incoming: str, affected: str, causes: Causes) -> None:
    refusal = find_refusal(destination, source, incoming)
    cause = f"packets {f'from {source} ' if source else ''}to {destination} are refused"
    if refusal is None:
        causes.add("the host's routes", cause, f"Look at `ip route get {destination}`.", affected, certain=False)
    else:
        causes.add(f"the host's {refusal.text}", cause, refusal.remedy, affected)


def _add_detour(  # noqa: PLR0913, PLR0917 - as above
    paths: Paths, endpoint: Endpoint, home: Link, outgoing: int, affected: str, causes: Causes
) -> None:
    if paths.links[outgoing].master == home.number or home.master == outgoing:
        return  # of one VRF or bridge
    ip = "ip -6" if endpoint.address.family == 6 else "ip"
    cause = f"{endpoint.network} is routed via {paths.links[outgoing].name}, and not via {home.name}"
    remedy = f"{ip} route replace {endpoint.address} dev {home.name}"
    causes.add("the host's routes", cause, remedy, affected)
