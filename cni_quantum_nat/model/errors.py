"""Errors that carry data: a CNI code, a one-line message, and details (object, cause, remedy).

Codes 1 to 99 are those of the CNI specification; ours start at 100 and are listed in docs/errors.md.
Raise them `from` their cause; cni/entry.py prints them.

A pod's start waits for this module.
"""

from __future__ import annotations

INCOMPATIBLE_VERSION = 1
# Code 3 (unknown container) is never used: it tells the runtime that nothing needs cleaning up.
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIGURATION = 7
INVALID_NAMESPACE = 8
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50

HOST_PORT_CONFLICT = 100
KERNEL_REFUSED = 101
STATE_DAMAGED = 102
CHECK_FAILED = 103
HOST_SETTING_REFUSED = 104
NO_ROUTE = 105
CLEAN_UP_INCOMPLETE = 106
PORT_RANGE_FULL = 107
NEWER_VERSION = 108
INTERNAL = 199


class CniError(Exception):
    """The error that a runtime gets when a call fails: one JSON object on stdout."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def as_result(self, cni_version: str) -> dict[str, object]:
        """Return the error object of the CNI specification, section 5."""
        result: dict[str, object] = {"cniVersion": cni_version, "code": self.code, "msg": self.message}
        details = " ".join([self.details, *getattr(self, "__notes__", ())]).strip()
        if details:
            result["details"] = details
        return result


class InvalidEnvironment(CniError):
    """A CNI_* variable is missing or malformed."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(INVALID_ENVIRONMENT, message, details)


class InvalidConfiguration(CniError):
    """The network configuration, or the arguments that came with it, cannot be used."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(INVALID_CONFIGURATION, message, details)


class HostPortConflict(CniError):
    """A host port is already in use."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(HOST_PORT_CONFLICT, message, details)


class KernelRefused(CniError):
    """nf_tables or the routing code returned an error that the plugin cannot handle."""

    def __init__(self, what: str, error_number: int, details: str = "", reason: str | None = None) -> None:
        from posix import strerror

        super().__init__(KERNEL_REFUSED, f"the kernel refused to {what}: {reason or strerror(error_number)}", details)
        self.error_number = error_number


class NotThere(KernelRefused):
    """ENOENT: the table, a chain, a set or an element in the message does not exist."""


class AlreadyThere(KernelRefused):
    """EEXIST: an element with one of the keys already exists."""


class HasChanged(KernelRefused):
    """ERESTART: the ruleset is not the one any more that was looked at."""


class NeedsFullProgram(BaseException):
    """The call needs a module that only the full program of the release has: raised by an import, never from source.

    On its way up it undoes what the call changed, as any failure does. locks: duplicates of the descriptors of the locks that are held.
    """

    def __init__(self, module: str, locks: list[int]) -> None:
        super().__init__(module)
        self.locks = locks
        self.request = b""
        self.version = ""
