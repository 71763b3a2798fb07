"""Quantum NAT: a CNI plugin that gives containers their way out and their way in.

What is named in __all__ is the Python API, loaded when it is first used: a runtime that waits has no use for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import NatManager, NatRule, NatType, Network, PortMapping, Protocol
    from .hotpath.errors import CniError
    from .slowpath.config import NatConfig

__version__ = "1.0.0"
__all__ = ["CniError", "NatConfig", "NatManager", "NatRule", "NatType", "Network", "PortMapping", "Protocol"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
