"""Connection Tracker: deletes conntrack entries that would outlive their mapping, and counts connections.

I/O over ctnetlink and the counter files. It imports `state`, `kernel` and `model`.

A pod's start waits for this module.
"""
