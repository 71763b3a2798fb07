"""`quantum-nat reconcile`: make the kernel's rules match the records, once or continuously."""
