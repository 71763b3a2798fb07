"""A table that survives `nft flush ruleset`, so that established connections stay translated.

The kernel applies a connection's translation in hooks. It removes the NAT hooks with the last NAT chain of the network
namespace, and the conntrack hooks with the last rule that uses the connection state. After a flush it would not translate
the next packet of a connection, and the host itself would answer with a reset. A table with the flag `owner` (Linux 5.12)
belongs to the socket that created it, and a flush by others leaves it alone. It disappears with this process.
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
    """A context manager that keeps the table."""

    def __init__(self) -> None:
        """Create the table; raise CniError(50) if the kernel lacks owned tables, or another process owns this one."""
        self._nft: Nftables | None = open_libnftables()  # its socket is the owner
        status, _, error = self._nft.cmd(_TEXT)
        if status:
            self._nft = None
            raise CniError(NOT_AVAILABLE, f"cannot create table inet {ANCHOR}", " ".join(error.split()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._nft = None
