"""`quantum-nat reconcile`: makes the kernel agree with the records, once or for as long as it runs."""
