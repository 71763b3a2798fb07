"""What happens when a port is held already."""

from cni_quantum_nat import NatManager, PortInUse

manager = NatManager()
first = manager.create_port_mapping("first", "172.20.0.2", 80, 8080)
try:
    manager.create_port_mapping("second", "172.20.0.3", 80, 8080)
except PortInUse as error:
    print(error)
    second = manager.create_port_mapping("second", "172.20.0.3", 80)
    print("published on", second.host_port, "instead")
    manager.remove_port_mapping(second)
manager.remove_port_mapping(first)
