"""`quantum-nat doctor`: find what blocks traffic to and from containers. It only reads."""
