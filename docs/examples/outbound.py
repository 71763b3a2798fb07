"""Give a whole network its way out, and take it away again."""

from cni_quantum_nat import NatConfig, NatManager, Network

manager = NatManager(NatConfig(masquerade="ipv4"))
fabric = Network("fabric0", "172.20.0.0/16", gateway="172.20.0.1")

rule = manager.enable_outbound_connectivity(fabric)
print(rule.nat_type, rule.source, "->", rule.translated or "the outgoing interface's address")

manager.disable_outbound_connectivity(fabric)
print(manager.rules())
