"""Checks of the host: sysctls, interfaces, routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kernel.routes import default_route_interfaces
from .finding import Finding
from .paths import Causes
from .snapshot import sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.attachments import Attachment
    from .paths import Path
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
    routes = host.external[4]
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
    without: dict[str, list[Path]] = {}
    for path in host.paths.all:
        port = path.veth
        if port is None or not port.is_bridge_port or port.hairpin:
            continue
        if any(filtered[family] == "1" for family in path.attachment.published_families):
            without.setdefault(path.recorded_home, []).append(path)
    for bridge, paths in without.items():
        names = [path.veth.name for path in paths if path.veth]
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield Finding(
            f"bridge port {names[0]}" if len(names) == 1 else f"{len(names)} ports of bridge {bridge}",
            "hairpin mode is off, and br_netfilter is on: a container cannot reach itself through its host ports "
            f"(affects {paths[0].attachment.id}{others})",
            f"bridge link set dev {names[0]} hairpin on"
            if len(names) == 1
            else f"for port in {' '.join(names)}; do bridge link set dev $port hairpin on; done",
        )


def check_external_interfaces(host: Snapshot) -> Iterator[Finding]:
    """Check that the external interfaces exist, and still have the default route if they should."""
    causes = Causes()
    for attachment in host.living:
        affected = str(attachment.id)
        for family, names in attachment.outbound.external_interfaces.items():
            for name in names:
                if name not in host.paths.by_name:
                    causes.add(
                        f"interface {name}",
                        f"it is gone, and it is the external interface for IPv{family}",
                        'Restart the containers; first set externalInterface to the new interface, unless it is "default".',
                        affected,
                    )
            current = _moved_default(host, attachment, family, names)
            if current:
                via = f"the IPv{family} default route is now via {', '.join(current)}"
                cause = f"{via}, but containers are masqueraded only via {', '.join(names)}"
                causes.add(f"network {attachment.id.network}", cause, "Restart the containers.", affected)
    yield from (Finding(*cause[:3], certain=cause[3]) for cause in causes)


def _moved_default(host: Snapshot, attachment: Attachment, family: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the default route's interfaces if an attachment is masqueraded via others that it had."""
    kept = host.state.read_configuration(attachment.id.network)
    if kept is None or kept["normalised"].get("externalInterface") != ["default"]:
        return ()
    current = default_route_interfaces(family)
    moved = names and not set(current) <= set(names) and all(name in host.paths.by_name for name in names)
    return current if moved else ()


def _name_of(path: str) -> str:
    return "net." + path.replace("/", ".")
