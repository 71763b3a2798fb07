"""What the Python API raises: a CniError each, with a class for what a program may want to handle."""

from __future__ import annotations

from .model import errors
from .model.errors import CniError

__all__ = [
    "CniError",
    "InvalidArgument",
    "LockTimeout",
    "NetworkOverlap",
    "NoRoute",
    "NotAvailable",
    "PortInUse",
    "PortRangeFull",
    "specific",
]


class InvalidArgument(CniError, ValueError):
    """An argument or a configuration key is not valid (code 7)."""


class PortInUse(CniError):
    """The host port belongs to another container, or a process of the host listens on it (code 100)."""


class NetworkOverlap(CniError):
    """The network has addresses of another network that is enabled (code 100)."""


class PortRangeFull(CniError):
    """No port of the configuration's port range is free (code 107)."""


class NotAvailable(CniError):
    """This host cannot do it: no nf_tables, no libnftables, no privileges (code 50)."""


class NoRoute(CniError):
    """The host has no route to the container (code 105)."""


class LockTimeout(CniError):
    """Another call held the lock for too long (code 11)."""


_CLASSES: dict[int, type[CniError]] = {
    errors.INVALID_CONFIGURATION: InvalidArgument,
    errors.HOST_PORT_CONFLICT: PortInUse,
    errors.PORT_RANGE_FULL: PortRangeFull,
    errors.NOT_AVAILABLE: NotAvailable,
    errors.NO_ROUTE: NoRoute,
    errors.TRY_AGAIN_LATER: LockTimeout,
}


def specific(error: CniError) -> CniError:
    """Return the error with the class of its code; itself if it has one, or if there is none."""
    found = _CLASSES.get(error.code)
    if found is None or type(error) in (*_CLASSES.values(), NetworkOverlap):
        return error
    return found(error.code, error.message, " ".join([error.details, *getattr(error, "__notes__", ())]).strip())
