"""Warnings on standard error, which runtimes write to their log.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..model.errors import CniError


def warn(error: CniError) -> None:
    """Report a failure that does not end the call."""
    posix.write(2, f"quantum-nat: {error.message}. {error.details}\n".encode())
