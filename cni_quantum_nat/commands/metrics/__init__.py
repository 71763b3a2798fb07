"""`quantum-nat metrics`: metrics for Prometheus."""
