"""portmap and Quantum NAT, called with the same configuration except for `type` and our state directory.

The tests check what a client sees, so they use the test topology of the kernel tests, with attachments as the bridge plugin
makes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.kernel.peer import Refused, TimedOut
from tests.kernel.plugin import Attachment, Plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.topology import Container, Host

PORTMAP_IPTABLES, PORTMAP_NFTABLES = "portmap-iptables", "portmap-nftables"
QUANTUM_NAT, QUANTUM_NAT_IPTABLES = "quantum-nat", "quantum-nat-iptables"
PORTMAP = (PORTMAP_IPTABLES, PORTMAP_NFTABLES)
PORT_MAPPERS = (PORTMAP_IPTABLES, PORTMAP_NFTABLES, QUANTUM_NAT, QUANTUM_NAT_IPTABLES)
ON_IPTABLES = (PORTMAP_IPTABLES, QUANTUM_NAT_IPTABLES)
ON_NFTABLES = (PORTMAP_NFTABLES, QUANTUM_NAT)
UNNAMED_BACKEND = (PORTMAP_IPTABLES, QUANTUM_NAT)  # the default of each without `backend`
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
_DEFAULT_VERSION = VERSIONS[-1]
CHECKED_VERSIONS = VERSIONS[2:]  # those with CHECK

Case = TypeVar("Case", bound="Callable[..., None]")
# How a difference shows to a client: another answer or none. Errors of the program must be named, see `differs`.
SEEN = (AssertionError, Refused, TimedOut, pytest.fail.Exception)

CNI_PATH = Path(os.environ.get("CONFORMANCE_CNI_PATH", ".cache/cni")).resolve()


def publish(host_port: int, container_port: int = 80, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    """Return an entry of portMappings with all keys that portmap needs."""
    return {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}


def differs(
    subjects: str | tuple[str, ...], why: str, raises: object = SEEN, *, always: bool = True
) -> Callable[[Case], Case]:
    """Mark a test that fails for these subjects; `raises`: the expected exceptions; `always`: False for a race."""

    def mark(case: Case) -> Case:
        for subject in (subjects,) if isinstance(subjects, str) else subjects:
            case = pytest.mark.differs(subject, why, raises=raises, strict=always)(case)
        return case

    return mark


class PortMapper(Plugin):
    """A subject. Its `backend` is in its configuration."""

    def __init__(self, name: str, host: Host, state_directory: Path) -> None:
        super().__init__(host, state_directory)
        self.is_ours = name.startswith(QUANTUM_NAT)
        self.type = "quantum-nat" if self.is_ours else "portmap"
        self.backend = "iptables" if name in ON_IPTABLES else "nftables"
        if not self.is_ours:
            self.command = [str(CNI_PATH / "portmap")]

    def configuration(self, network: str = "net", **keys: Any) -> dict[str, Any]:
        base = {"cniVersion": _DEFAULT_VERSION, "name": network, "type": self.type, "backend": self.backend}
        if self.is_ours:
            base["stateDir"] = str(self.state_directory)
        return {key: value for key, value in {**base, **keys}.items() if value is not None}

    def attachment(self, container: Container, *ports: dict[str, Any], network: str = "net", **keys: Any) -> Attachment:
        """Prepare an attachment without calling the plugin; keys that are None are left out."""
        keys.setdefault("prevResult", previous_result(container, keys.get("cniVersion", _DEFAULT_VERSION)))
        if ports:
            keys["runtimeConfig"] = {"portMappings": list(ports)}
        return Attachment(self, container, self.configuration(network, **keys))

    def conditions(self, source: str) -> list[str]:
        """Return conditions that allow only this source address, in the backend's syntax."""
        if self.backend == "iptables":
            return ["-s", source]
        return ["ip6" if ":" in source else "ip", "saddr", source]


def previous_result(container: Container, version: str) -> dict[str, Any]:
    """Return the bridge plugin's result in this version of the specification."""
    result = container.previous_result() | {"cniVersion": version}
    if version.startswith("0."):
        for ip in result["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return result
