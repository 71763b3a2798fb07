"""Checks of the host: sysctls, interfaces, routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kernel.routes import default_route_interfaces
from .finding import Finding
from .snapshot import sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.attachments import Attachment
    from .snapshot import Snapshot

_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
_NEARLY_FULL = 0.8
_STRICT = "1"


def check_forwarding(host: Snapshot) -> Iterator[Finding]:
    """Check that the host forwards containers' traffic."""
    for family in sorted(host.families):
        if sysctl(_FORWARDING[family]) != "1":
            name = _name_of(_FORWARDING[family])
            yield Finding(f"IPv{family}", f"{name} is off: no packets reach or leave containers", f"sysctl -w {name}=1")


def check_conntrack(_host: Snapshot) -> Iterator[Finding]:
    """Check that the conntrack table has room for new connections."""
    count, most = (sysctl(f"netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count and most and int(count) >= _NEARLY_FULL * int(most):
        yield Finding(
            "connection tracking",
            f"{count} of {most} entries are in use; new connections are dropped when it is full",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}",
        )


def check_route_localnet(host: Snapshot) -> Iterator[Finding]:
    """Check that containers are reachable from 127.0.0.1 if they should be."""
    reported = set()
    homes = {path.attachment.id: path.home.name for path in host.paths.all if path.home}
    for attachment, mapping, family in host.published():
        if family != 4 or not attachment.inbound.snat or not mapping.is_reached_from_loopback:
            continue
        interface = homes.get(attachment.id, "")
        settings = [sysctl(f"ipv4/conf/{name}/route_localnet") for name in ("all", interface)]
        if interface and interface not in reported and "1" not in settings:
            reported.add(interface)
            yield Finding(
                f"interface {interface}",
                f"route_localnet is off: 127.0.0.1:{mapping.host_range} does not reach {attachment.id}",
                f"sysctl -w net.ipv4.conf.{interface}.route_localnet=1",
            )


def check_reverse_path(host: Snapshot) -> Iterator[Finding]:
    """Check that the reverse path filter does not drop packets on interfaces other than the default route's."""
    if 4 not in host.families:
        return
    routes = [route.interface for route in host.routes if route.family == 4]
    named = {name for a in host.living for name in a.outbound.external_interfaces.get(4, ())}
    for interface in sorted({*routes[1:], *named} - set(routes[:1])):
        settings = [sysctl(f"ipv4/conf/{name}/rp_filter") or "0" for name in ("all", interface)]
        if max(settings) == _STRICT:
            yield Finding(
                f"interface {interface}",
                f"rp_filter is strict, and the default route is {f'via {routes[0]}' if routes else 'missing'}: "
                "packets that arrive here are dropped",
                f"sysctl -w net.ipv4.conf.{interface}.rp_filter=2",
            )


def check_hairpin(host: Snapshot) -> Iterator[Finding]:
    """Check that containers reach themselves through their own host ports; with br_netfilter this needs hairpin mode."""
    filtered = {4: sysctl("bridge/bridge-nf-call-iptables"), 6: sysctl("bridge/bridge-nf-call-ip6tables")}
    for path in host.paths.all:
        attachment, port = path.attachment, path.veth
        if port is None or not port.is_bridge_port or port.hairpin:
            continue
        if any(filtered[family] == "1" for family in attachment.published_families):
            yield Finding(
                f"bridge port {port.name}",
                f"hairpin mode is off, and br_netfilter is on: {attachment.id} cannot reach itself through its host ports",
                f"bridge link set dev {port.name} hairpin on",
            )


def check_external_interfaces(host: Snapshot) -> Iterator[Finding]:
    """Check that the external interfaces exist, and still have the default route if they should."""
    for attachment in host.living:
        for family, names in attachment.outbound.external_interfaces.items():
            for name in names:
                if name not in host.paths.by_name:
                    yield Finding(
                        str(attachment.id),
                        f"external interface {name} for IPv{family} is gone",
                        'Restart the container; first set externalInterface to the new interface, unless it is "default".',
                    )
            yield from _moved_default(host, attachment, family, names)


def _moved_default(host: Snapshot, attachment: Attachment, family: int, names: tuple[str, ...]) -> Iterator[Finding]:
    kept = host.state.read_configuration(attachment.id.network)
    if kept is None or kept["normalised"].get("externalInterface") != ["default"]:
        return
    current = default_route_interfaces(family)
    if current and names and not set(current) <= set(names) and all(name in host.paths.by_name for name in names):
        yield Finding(
            str(attachment.id),
            f"the IPv{family} default route is now via {', '.join(current)}, but it is masqueraded only via {', '.join(names)}",
            "Restart the container.",
        )


def _name_of(path: str) -> str:
    return "net." + path.replace("/", ".")
