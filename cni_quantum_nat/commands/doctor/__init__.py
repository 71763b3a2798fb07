"""`quantum-nat doctor`: what keeps traffic from containers. It reads the host, and changes nothing."""
