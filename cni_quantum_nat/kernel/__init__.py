"""Access to the host's kernel: netlink framing, routes and addresses, sysctls, namespaces, processes.

All of it is I/O; none of it is about NAT. Every package above may use it; it imports only `model`.

A pod's start waits for this module.
"""
