"""Give a network CIDR outbound NAT, and take it away again."""

from cni_quantum_nat import NatConfig, NatManager, Network

manager = NatManager(NatConfig(masquerade="ipv4"))
fabric = Network(id="fabric0", name="fabric", cidr="172.20.0.0/16", gateway="172.20.0.1")

rule = manager.enable_outbound_connectivity(fabric)
print(rule.nat_type, rule.source_address, "->", rule.translated_address or "the outgoing interface's address")

manager.disable_outbound_connectivity(fabric)
print(manager.rules())
