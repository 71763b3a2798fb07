"""The state directory, which says who owns what: records, the lock, counters, and the files that hold them.

I/O on files that only the plugin writes. It imports `kernel` and `model`; changes to the records are the NAT Manager's alone.
"""
