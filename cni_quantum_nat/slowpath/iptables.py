"""Backend Provider for iptables."""

from __future__ import annotations

from ..hotpath.backend import Backend


class IptablesBackend(Backend):
    """To come."""

    name = "iptables"

    def __init__(self, state: object) -> None:
        self._state = state
