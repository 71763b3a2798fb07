"""Flows that began while the rules were not there: conntrack remembers them as they were, and would for as long as they go on.

A client that kept sending is not translated afterwards either, nor is a container's request on its way out. Both begin
anew once their flow is forgotten. A flow that was translated before the gap is left alone, and goes on.
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


def forget_flows_of_the_gap(attachments: list[Attachment]) -> int:
    """Forget those of these attachments, and return how many; CniError(101) when conntrack cannot be read."""
    families = {family for attachment in attachments for family in (4, 6) if _is_concerned(attachment, family)}
    if not families or not is_tracking():
        return 0
    targets, sources = _targets(attachments), _sources(attachments)
    forgotten = 0
    with ConnectionTracker() as tracker:
        for family in families:
            flows = [flow for flow in tracker.flows(Selection(family)) if _is_of_the_gap(flow, targets, sources)]
            tracker.delete(flows)
            forgotten += len(flows)
    return forgotten


def _is_concerned(attachment: Attachment, family: int) -> bool:
    return family in attachment.published_families or family in attachment.outbound.masquerade


def _is_of_the_gap(flow: Flow, targets: set[Target], sources: set[Address]) -> bool:
    address, port = flow.target
    if (flow.protocol, address, port) in targets:
        return not flow.is_translated
    return flow.sources[0] in sources and not (flow.is_source_translated or flow.is_translated or flow.is_answered)


def _targets(attachments: list[Attachment]) -> set[Target]:
    """Return where the host ports are: protocol, address, port."""
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
    """Return the addresses that are masqueraded; those of whole networks are too many to be listed."""
    return {
        endpoint.address
        for attachment in attachments
        for endpoint in attachment.endpoints
        if endpoint.address.family in attachment.outbound.masquerade and not attachment.is_network
    }
