"""What the host's kernel says and does: netlink framing, routes and addresses, sysctls, namespaces, processes.

All of it is I/O, and none of it knows of NAT. Every floor above may use it; it imports only `model`.
"""
