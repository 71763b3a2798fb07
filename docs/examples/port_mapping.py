"""Publish two ports of a container, one on a port of the host that is free, and take them away again."""

from cni_quantum_nat import NatManager, Protocol

manager = NatManager()
web = manager.create_port_mapping("container123", "172.20.0.2", 80, 8080)
dns = manager.create_port_mapping("container123", "172.20.0.2", 53, protocol=Protocol.UDP)

for mapping in (web, dns):
    print(f"{mapping.container_port}/{mapping.protocol} is published on {mapping.host_port}")
for rule in manager.rules():
    print(rule.destination, "->", rule.translated)

manager.remove_port_mapping(web)
manager.remove_port_mapping(dns)
