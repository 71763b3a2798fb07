"""Network namespaces as hosts, one for each contender and number of containers, so that their rules do not mix."""

from __future__ import annotations

import hashlib
import socket
from typing import TYPE_CHECKING

from tests.kernel.peer import inside
from tests.kernel.topology import Namespace

from .contenders import GATEWAY, Contender, Mapping, Request, call

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

FIRST_PORT = 50000  # of the timed container; the others have lower ones
FIRST_FILLED_PORT = 10000
SAMPLE_PORT = 50999
FLOWS = 100
_FLOW_LIFE_S = 86400
_TRACKING = """table inet bench {
	chain output {
		type filter hook output priority 0
		ct state new accept
	}
}
"""


class Host:
    """A host with one contender, and the namespace of the timed container."""

    def __init__(self, stack: ExitStack, contender: Contender, directory: Path, containers: int = 0) -> None:
        self.contender = contender
        self.containers = containers
        self.stack = stack
        self.namespace = Namespace("host", stack)
        self.container = Namespace("container", stack)
        self.private = directory / self.namespace.name
        self.private.mkdir(parents=True)
        if not contender.makes_interface:
            self.namespace.ip("link add cni0 type bridge", f"address add {GATEWAY} dev cni0", "link set cni0 up")

    def call(self, verb: str, request: Request) -> float:
        """Call the contender on this host; return the milliseconds."""
        return call(self.contender, verb, request, self.namespace.path, self.private)

    def timed(self, ports: int, protocol: str = "tcp") -> Request:
        """Return the timed container."""
        mappings = tuple(Mapping(FIRST_PORT + number, protocol, 80 + number) for number in range(ports))
        return Request(name_of("timed"), "10.88.0.2", mappings, self.container.path)

    def sample(self) -> Request:
        """Return the container that is the pattern for the others."""
        return Request(name_of("sample"), "10.88.0.9", (Mapping(SAMPLE_PORT),), self.container.path)

    def filled(self, number: int) -> Request:
        """Return one of the other containers."""
        address = f"10.88.{1 + number // 250}.{1 + number % 250}"
        return Request(name_of(str(number)), address, (Mapping(FIRST_FILLED_PORT + number),), self.container.path)

    def track_flows(self) -> None:
        """Add UDP connections to conntrack, as on a host in use: to delete some, the kernel looks at all."""
        self.namespace.run("nft", "-f", "-", stdin=_TRACKING)
        self.namespace.set_sysctl("netfilter/nf_conntrack_udp_timeout", str(_FLOW_LIFE_S))
        with inside(self.namespace.path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(FLOWS):
                sender.sendto(b"", (f"127.1.1.{1 + number}", 9))


def name_of(what: str) -> str:
    """Return a container ID of the length that runtimes use."""
    return hashlib.sha256(what.encode()).hexdigest()
