"""Quantum NAT: a CNI plugin for port mapping and outbound NAT, built on nftables.

The names in __all__ are the Python API, which is loaded on first use: a runtime's call does without it.

A pod's start waits for this module.
"""

from __future__ import annotations

from .version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import NatConfig, NatManager, NatRule, NatType, Network, PortMapping, Protocol
    from .exceptions import (
        CniError,
        InvalidArgument,
        LockTimeout,
        NetworkOverlap,
        NoRoute,
        NotAvailable,
        PortInUse,
        PortRangeFull,
    )

__all__ = [
    "CniError",
    "InvalidArgument",
    "LockTimeout",
    "NatConfig",
    "NatManager",
    "NatRule",
    "NatType",
    "Network",
    "NetworkOverlap",
    "NoRoute",
    "NotAvailable",
    "PortInUse",
    "PortMapping",
    "PortRangeFull",
    "Protocol",
    "__version__",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of this package

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import api

        return getattr(api, name)
