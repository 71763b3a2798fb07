"""Port Mapper: which ports are requested, which are free, and which the host itself listens on.

`mappings` does no I/O; `allocation` and `listeners` ask the kernel. It imports `state`, `kernel` and `model`.

A pod's start waits for this module.
"""
