"""NAT Manager and Rule Manager: the steps of each call, their order, and how they are undone.

`manager` does I/O through the packages below, under the lock of the state directory; `cni`, `api` and `commands` use it.

A pod's start waits for this module.
"""
