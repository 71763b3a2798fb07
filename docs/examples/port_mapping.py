"""Publish two ports of a container, one on a port of the host that is free, and take them away again."""

from cni_quantum_nat import NatManager, Protocol

manager = NatManager()
web = manager.create_port_mapping("container123", "172.20.0.2", 80, 8080)
dns = manager.create_port_mapping("container123", "172.20.0.2", 53, protocol=Protocol.UDP)

for mapping in (web, dns):
    print(f"{mapping.container_port}/{mapping.protocol} is published on {mapping.host_port}: {mapping.id}")
for rule in manager.rules():
    print(f"{rule.destination_address}:{rule.destination_port} -> {rule.translated_address}:{rule.translated_port}")

manager.remove_port_mapping(web)
manager.remove_port_mapping(dns.id)
