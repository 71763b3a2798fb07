"""The NAT rules of an attachment, for the Python API and the metrics; they do not depend on the backend."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model import attachments as model

ANY_NETWORK = {4: "0.0.0.0/0", 6: "::/0"}


class Protocol(StrEnum):
    """A transport protocol with ports."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class NatType(StrEnum):
    """The type of translation: the source to the outgoing interface's address or to a fixed one, or the destination."""

    MASQUERADE = "masquerade"
    SNAT = "snat"
    DNAT = "dnat"


@dataclass(frozen=True)
class NatRule:
    """A NAT rule. Addresses with a port are written as "192.0.2.1:80" or "[2001:db8::1]:80".

    id: stable for the life of the rule. protocol: None for any. source, destination: of a packet before translation.
    translated: the new address, "" for the outgoing interface's own. interfaces: the outgoing ones; empty for any.
    """

    id: str
    nat_type: NatType
    protocol: Protocol | None
    source: str
    destination: str
    translated: str
    interfaces: tuple[str, ...]
    description: str
    created_at: datetime


def rules_of(attachment: model.Attachment) -> Iterator[NatRule]:
    """Yield the rules of an attachment: outbound NAT, then published ports."""
    created_at = datetime.fromtimestamp(attachment.created_at, UTC)
    outbound = attachment.outbound
    for endpoint in attachment.endpoints:
        family = endpoint.address.family
        if family in outbound.masquerade:
            fixed = outbound.snat_addresses.get(family)
            yield NatRule(
                id=f"{attachment.id.owner}/out/{endpoint.address}",
                nat_type=NatType.SNAT if fixed else NatType.MASQUERADE,
                protocol=None,
                source=str(endpoint.network) if attachment.is_network else str(endpoint.address),
                destination=ANY_NETWORK[family],
                translated=str(fixed or ""),
                interfaces=outbound.external_interfaces.get(family, ()),
                description=f"outbound NAT of {attachment.id}",
                created_at=created_at,
            )
    for family in sorted(attachment.published_families):
        yield from _port_rules(attachment, family, created_at)


def _port_rules(attachment: model.Attachment, family: int, created_at: datetime) -> Iterator[NatRule]:
    endpoint = attachment.published_endpoint(family)
    for mapping in attachment.port_mappings:
        if endpoint is not None and mapping.serves(family):
            host_ip = str(mapping.specific_host_ip or ANY_NETWORK[family].partition("/")[0])
            yield NatRule(
                id=f"{attachment.id.owner}/in{family}/{mapping}",
                nat_type=NatType.DNAT,
                protocol=Protocol(mapping.protocol),
                source=ANY_NETWORK[family],
                destination=_with_port(host_ip, mapping.host_port),
                translated=_with_port(str(endpoint.address), mapping.container_port),
                interfaces=(),
                description=f"published port of {attachment.id}",
                created_at=created_at,
            )


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
