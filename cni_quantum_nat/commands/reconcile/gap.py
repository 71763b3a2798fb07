"""Delete the conntrack entries of connections that began while the rules were missing.

Such an entry keeps its connection untranslated for as long as packets arrive: a client's to a host port, or a container's to
the outside. Once it is deleted, the next packet is translated. Connections translated before the gap are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...connections.tracker import ConnectionTracker, Selection, is_tracking
from ...kernel.routes import local_addresses
from ...model.attachments import PROTOCOLS

if TYPE_CHECKING:
    from ...connections.tracker import Flow
    from ...model.addresses import Address
    from ...model.attachments import Attachment

    Target = tuple[int, Address, int]


def delete_untranslated_entries(attachments: list[Attachment]) -> int:
    """Delete those of these attachments, and return their number; raise CniError(101) if conntrack cannot be read."""
    families = {family for attachment in attachments for family in (4, 6) if _is_concerned(attachment, family)}
    if not families or not is_tracking():
        return 0
    targets, sources = _targets(attachments), _sources(attachments)
    deleted = 0
    with ConnectionTracker() as tracker:
        for family in families:
            flows = [flow for flow in tracker.flows(Selection(family)) if _is_of_the_gap(flow, targets, sources)]
            tracker.delete(flows)
            deleted += len(flows)
    return deleted


def _is_concerned(attachment: Attachment, family: int) -> bool:
    return family in attachment.published_families or family in attachment.outbound.masquerade


def _is_of_the_gap(flow: Flow, targets: set[Target], sources: set[Address]) -> bool:
    address, port = flow.target
    if (flow.protocol, address, port) in targets:
        return not flow.is_translated
    return flow.sources[0] in sources and not (flow.is_source_translated or flow.is_translated or flow.is_answered)


def _targets(attachments: list[Attachment]) -> set[Target]:
    """Return the published host ports: protocol number, address, port."""
    local = local_addresses({4, 6})
    targets = set()
    for attachment in attachments:
        for mapping in attachment.port_mappings:
            specific = mapping.specific_host_ip
            for address in local if specific is None else [specific]:
                if mapping.serves(address.family) and address.family in attachment.published_families:
                    targets.add((PROTOCOLS[mapping.protocol], address, mapping.host_port))
    return targets


def _sources(attachments: list[Attachment]) -> set[Address]:
    """Return the masqueraded addresses, without those of network CIDRs, which are too many to list."""
    return {
        endpoint.address
        for attachment in attachments
        for endpoint in attachment.endpoints
        if endpoint.address.family in attachment.outbound.masquerade and not attachment.is_network
    }
