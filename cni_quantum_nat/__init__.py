"""Quantum NAT: a CNI plugin that gives containers their way out and their way in."""

__version__ = "0.1.0"
