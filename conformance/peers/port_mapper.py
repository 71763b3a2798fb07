"""portmap and Quantum NAT, called with the same configuration: only `type` changes, and the place of our records.

What is asked of them is what a client sees, so a world of namespaces stands for the host, and the attachments are made as
the bridge plugin makes them.
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
UNNAMED_BACKEND = (PORTMAP_IPTABLES, QUANTUM_NAT)  # what each is when the configuration names no backend
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
_DEFAULT_VERSION = VERSIONS[-1]
CHECKED_VERSIONS = VERSIONS[2:]  # CHECK came with 0.4.0

Case = TypeVar("Case", bound="Callable[..., None]")
# How a difference shows that a client sees: another answer or none. An error of the program is no such thing, see `differs`.
SEEN = (AssertionError, Refused, TimedOut, pytest.fail.Exception)

CNI_PATH = Path(os.environ.get("CONFORMANCE_CNI_PATH", ".cache/cni")).resolve()


def publish(host_port: int, container_port: int = 80, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    """Return an entry of portMappings with all that portmap needs."""
    return {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}


def differs(
    subjects: str | tuple[str, ...], why: str, raises: object = SEEN, *, always: bool = True
) -> Callable[[Case], Case]:
    """Mark what does not hold for these subjects; `raises` says how that shows, `always` is False for a race."""

    def mark(case: Case) -> Case:
        for subject in (subjects,) if isinstance(subjects, str) else subjects:
            case = pytest.mark.differs(subject, why, raises=raises, strict=always)(case)
        return case

    return mark


class PortMapper(Plugin):
    """One of the subjects. `backend` is what it works with, and is named in its configuration."""

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
        """Prepare an attachment without a call; a key that is None is left out."""
        keys.setdefault("prevResult", previous_result(container, keys.get("cniVersion", _DEFAULT_VERSION)))
        if ports:
            keys["runtimeConfig"] = {"portMappings": list(ports)}
        return Attachment(self, container, self.configuration(network, **keys))

    def conditions(self, source: str) -> list[str]:
        """Return what lets this source address in alone, in the backend's syntax."""
        if self.backend == "iptables":
            return ["-s", source]
        return ["ip6" if ":" in source else "ip", "saddr", source]


def previous_result(container: Container, version: str) -> dict[str, Any]:
    """Return what the bridge plugin prints in this version of the specification."""
    result = container.previous_result() | {"cniVersion": version}
    if version.startswith("0."):
        for ip in result["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return result
