"""A table of our own that no flush takes away: while it is there, connections that are established stay translated.

What conntrack knows of a translated flow is applied by hooks. The kernel takes those of NAT down with the last NAT chain of the
network namespace, and those of conntrack with the last rule that asks for its state. A `nft flush ruleset` would then pass the next packet of a connection on as it came: to the host
itself, which answers with a reset. A table with the flag `owner` (Linux 5.12) belongs to the socket that made it, and a
flush by anybody else leaves it out. It goes when this process does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ...backends.nftables.layout import TABLE
from ...backends.nftables.programs import open_libnftables
from ...model.errors import NOT_AVAILABLE, CniError

if TYPE_CHECKING:
    from nftables import Nftables

ANCHOR = f"{TABLE}_anchor"
_TEXT = f"""
add table inet {ANCHOR} {{ flags owner; comment "keeps established connections translated while rules are reloaded"; }}
add chain inet {ANCHOR} anchor {{ type nat hook prerouting priority 300; policy accept; }}
add rule inet {ANCHOR} anchor ct state new accept
"""


class Anchor:
    """The table, for as long as this object is in use: use it in `with`."""

    def __init__(self) -> None:
        """Make it; CniError(50) where the kernel has no owned tables, or another process has this one."""
        self._nft: Nftables | None = open_libnftables()  # its socket is the owner
        status, _, error = self._nft.cmd(_TEXT)
        if status:
            self._nft = None
            raise CniError(NOT_AVAILABLE, f"table inet {ANCHOR} cannot be made", " ".join(error.split()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._nft = None
