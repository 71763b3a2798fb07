"""`quantum-nat metrics`: the counters, for Prometheus."""
