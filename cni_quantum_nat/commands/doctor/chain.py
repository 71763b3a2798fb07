"""A chain of rules, of nf_tables or of iptables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    Expression = dict[str, Any]
    Rule = list[Expression]

IP, BRIDGE, DEVICE = "ip", "bridge", "device"
_DEVICE_HOOKS = ("ingress", "egress")


class Chain(NamedTuple):
    """A chain.

    table: family and name. hook: empty if it is only reached by jumps. kind: "filter", "nat" or "route". devices: those that it is attached to.
    handles: of each rule in nf_tables; empty for iptables, whose rules have numbers. variant: of iptables, "nft" or "legacy".
    """

    families: set[int]
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: list[Rule]
    kind: str = "filter"
    devices: frozenset[str] = frozenset()
    handles: list[int] | None = None
    variant: str = ""

    @property
    def layer(self) -> str:
        """Whose hooks its hook is one of: IP, BRIDGE or DEVICE."""
        return DEVICE if self.hook in _DEVICE_HOOKS else BRIDGE if self.table.startswith("bridge ") else IP

    def __str__(self) -> str:
        return f"chain {self.name} in table {self.table}"
