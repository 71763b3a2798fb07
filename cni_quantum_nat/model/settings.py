"""The settings of a validated network configuration. No I/O.

A pod's start waits for this module.
"""

from __future__ import annotations

from .addresses import Address, Subnet
from .attachments import Inbound
from .ranges import share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .attachments import Attachment

_DEFAULT_ROUTE = "default"


class Settings:
    """The normalised configuration; NatConfig describes each key.

    masquerade: address families. no_masquerade: destinations that are never masqueraded. external_interfaces: empty for any.
    follows_default_route: whether they are those of the default route at ADD. snat_addresses: by family. port_range: first and
    last. sharing: how the ports in shared_ports are shared, see PortMapping.
    """

    __slots__ = (
        "backend",
        "established_timeout_s",
        "external_interfaces",
        "follows_default_route",
        "inbound",
        "ip_forwarding",
        "masquerade",
        "no_masquerade",
        "port_range",
        "refuse_conflicts",
        "shared_ports",
        "sharing",
        "snat_addresses",
        "udp_timeouts_s",
    )

    def __init__(self, normalised: dict[str, Any]) -> None:
        self.backend: str = normalised["backend"]
        self.ip_forwarding: bool = normalised["ipForwarding"]
        self.masquerade: tuple[int, ...] = tuple(normalised["masquerade"])
        self.external_interfaces: tuple[str, ...] = tuple(normalised["externalInterface"])
        self.follows_default_route = self.external_interfaces == (_DEFAULT_ROUTE,)
        if self.follows_default_route:
            self.external_interfaces = ()
        addresses = [Address.parse(text) for text in normalised["snatAddress"]]
        self.snat_addresses = {address.family: address for address in addresses}
        self.no_masquerade = tuple(map(Subnet.parse, normalised["noMasqueradeTo"]))
        first, last = normalised["portRange"]
        self.port_range: tuple[int, int] = (first, last)
        self.refuse_conflicts: bool = normalised["refuseConflicts"]
        self.shared_ports: list[int] = normalised["sharedPorts"]
        self.sharing: str = normalised["sharing"]
        self.established_timeout_s: int = normalised["conntrackTimeout"]
        self.udp_timeouts_s: tuple[int, int] | None = None
        if normalised["udpTimeouts"]:
            unreplied_s, stream_s = normalised["udpTimeouts"]
            self.udp_timeouts_s = (unreplied_s, stream_s)
        self.inbound = Inbound(
            snat=normalised["snat"],
            masquerade_all=normalised["masqAll"],
            ipv6_localhost=normalised["ipv6Localhost"],
            isolate=normalised["isolate"],
            conditions={int(family): tuple(words) for family, words in normalised["conditions"].items()},
            allow_from=tuple(map(Subnet.parse, normalised["allowFrom"])),
            publish_on=tuple(normalised["publishOn"]),
            mark_bit=normalised["markMasqBit"],
            set_mark_chain=normalised["externalSetMarkChain"],
        )

    def apply_to(self, attachment: Attachment) -> None:
        """Apply the network's current settings to an attachment, except for outbound NAT, which ADD determined."""
        attachment.backend = self.backend
        attachment.inbound = self.inbound
        attachment.established_timeout_s = self.established_timeout_s
        attachment.udp_timeouts_s = self.udp_timeouts_s
        attachment.port_mappings = [
            part for mapping in attachment.port_mappings for part in share(mapping, self.shared_ports, self.sharing)
        ]
