"""The state directory, the source of truth for ownership: records, the lock, counters, and file access.

It does I/O on files that only the plugin writes. It imports `kernel` and `model`; only the NAT Manager changes records.

A pod's start waits for this module.
"""
