"""Port Mapper: which ports are asked for, which are free, and which the host itself listens on.

Reading mappings is pure; allocation and listeners ask the kernel. It imports `state`, `kernel` and `model`.
"""
