"""Checks of other programs on this host: NAT of other plugins, services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...model.errors import HostPortConflict
from ...ports.allocation import check_host_listeners
from .evaluate import fates
from .filters import external_interface, told_apart
from .finding import Finding
from .journeys import row
from .matches import Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .chain import Chain
    from .evaluate import Fate
    from .snapshot import Snapshot

_OUR_PRIORITY = -110
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


def check_translators(host: Snapshot) -> Iterator[Finding]:
    """Find programs that also translate one of our host ports, to another target."""
    for attachment, mapping, family in host.published():
        endpoint = attachment.published_endpoint(family)
        external = external_interface(host, family)
        destination = str(mapping.specific_host_ip or host.outer_addresses.get((family, external), ""))
        for offset, size in told_apart(host, mapping.host_port, mapping.size):
            packet = Packet(
                family,
                external,
                "",
                "",
                destination,
                mapping.protocol,
                mapping.host_port + offset,
                local=frozenset({"daddr"}),
            )
            for chain in host.foreign.hooked("prerouting", family):
                for fate in fates(host.foreign, chain, packet)[0]:
                    if fate.verdict.startswith("dnat") and endpoint and str(endpoint.address) not in fate.verdict:
                        yield _translated_twice(
                            fate,
                            chain,
                            f"{row(mapping.host_port + offset, size)}/{mapping.protocol}",
                            str(attachment.id),
                        )


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
