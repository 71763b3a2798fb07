"""NAT Manager and Rule Manager: what has to happen for a call, in which order, and how it is undone.

`manager` does I/O through the floors below, under the lock of the state directory. `cni`, `api` and `commands` come in by it.
"""
