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
    """A NAT rule.

    id: stable for the life of the rule. protocol: None for any. source_address, destination_address: of a packet before
    translation, an address or a CIDR; the ports with them are None for any. translated_address: None for the outgoing
    interface's own; translated_port: None if the port stays, as that of a range does;
    destination_port is the first port of a range then, and the description has all. external_interface: the outgoing one, or several with ", "
    between them; None for any. internal_interface: the host's interface towards the container; None if there is none.
    """

    id: str
    nat_type: NatType
    protocol: Protocol | None
    source_address: str
    source_port: int | None
    destination_address: str
    destination_port: int | None
    translated_address: str | None
    translated_port: int | None
    external_interface: str | None
    internal_interface: str | None
    description: str
    created_at: datetime


def rules_of(attachment: model.Attachment) -> Iterator[NatRule]:
    """Yield the rules of an attachment: outbound NAT, then published ports."""
    outbound = attachment.outbound
    for endpoint in attachment.endpoints:
        family = endpoint.address.family
        if family in outbound.masquerade:
            fixed = outbound.snat_addresses.get(family)
            yield NatRule(
                id=f"{attachment.id.owner}/out/{endpoint.address}",
                nat_type=NatType.SNAT if fixed else NatType.MASQUERADE,
                protocol=None,
                source_address=str(endpoint.network) if attachment.is_network else str(endpoint.address),
                source_port=None,
                destination_address=ANY_NETWORK[family],
                destination_port=None,
                translated_address=str(fixed) if fixed else None,
                translated_port=None,
                external_interface=", ".join(outbound.external_interfaces.get(family, ())) or None,
                internal_interface=endpoint.host_interface or None,
                description=f"outbound NAT of {attachment.id}",
                created_at=datetime.fromtimestamp(attachment.created_at, UTC),
            )
    for family in sorted(attachment.published_families):
        yield from _port_rules(attachment, family)


def _port_rules(attachment: model.Attachment, family: int) -> Iterator[NatRule]:
    endpoint = attachment.published_endpoint(family)
    for mapping in attachment.port_mappings:
        if endpoint is not None and mapping.serves(family):
            yield NatRule(
                id=f"{attachment.id.owner}/in{family}/{mapping}",
                nat_type=NatType.DNAT,
                protocol=Protocol(mapping.protocol),
                source_address=ANY_NETWORK[family],
                source_port=None,
                destination_address=str(mapping.specific_host_ip or ANY_NETWORK[family].partition("/")[0]),
                destination_port=mapping.host_port,
                translated_address=str(endpoint.address),
                translated_port=mapping.container_port if mapping.size == 1 else None,
                external_interface=None,
                internal_interface=endpoint.host_interface or None,
                description=f"published port {mapping.host_range}/{mapping.protocol} of {attachment.id}"
                if mapping.size > 1
                else f"published port of {attachment.id}",
                created_at=datetime.fromtimestamp(mapping.created_at or attachment.created_at, UTC),
            )
