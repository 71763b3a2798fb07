"""An attachment to write to a state directory."""

from __future__ import annotations

from cni_quantum_nat.model.addresses import Endpoint
from cni_quantum_nat.model.attachments import Attachment, AttachmentId, Inbound, Outbound, PortMapping


def attachment(network: str, container: str, interface: str, port: int = 80) -> Attachment:
    return Attachment(
        AttachmentId(network, container, interface),
        backend="nftables",
        netns="/run/netns/c",
        netns_identity=(4, 5),
        endpoints=[Endpoint.parse("10.0.0.2/24")],
        port_mappings=[PortMapping(None, port, "tcp", 80)],
        outbound=Outbound(),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=1.0,
    )
