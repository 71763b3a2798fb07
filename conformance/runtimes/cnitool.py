"""cnitool v1.3.0, which calls libcni directly. A container is a network namespace with a server in it."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from hashlib import sha512
from typing import TYPE_CHECKING, ClassVar

from tests.kernel.topology import NETNS_DIRECTORY, run

from .runtime import FRONT, HANDS_PORTS_ON, SERVED_PORTS, Network, Port, Running, Runtime, addresses_in, shell

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = "v1.3.0"


class Cnitool(Runtime):
    """cnitool, called once for each network of a container."""

    name = "cnitool"
    cni_version = "1.1.0"
    lacks: ClassVar[dict[str, str]] = {
        "daemon": "it has no daemon",
        "own host ports": HANDS_PORTS_ON,
        "reload": "it has no such command; see the row of quantum-nat reconcile",
    }

    @classmethod
    def install(cls) -> None:
        _program()
        shell("container_root")

    def version(self) -> str:
        return _VERSION.removeprefix("v")

    def start(self) -> None:
        self._program = _program()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        run("tar", "-C", str(self.directory), "-xf", shell("container_root"), "--strip-components=2", "./bin/server")

    def stop(self) -> None:
        for name in list(self._servers):
            self._end(name)
            run("ip", "netns", "delete", name)

    def run(self, name: str, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        netns = NETNS_DIRECTORY / name
        container = Running(_container_id(netns), name, netns, ports, networks)
        with ExitStack() as undo:
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "delete", name)
            undo.callback(self._detach, container)  # as a runtime does after a failed ADD
            for network in networks:
                self.call("add", container, network)
            undo.pop_all()
        run("ip", "-n", name, "link", "set", "lo", "up")
        server = ["nsenter", f"--net={netns}", str(self.directory / "server"), name, *map(str, SERVED_PORTS)]
        self._servers[name] = subprocess.Popen(server)
        container.addresses = addresses_in(netns, networks)
        return container

    def remove(self, container: Running) -> None:
        self._detach(container)
        self._end(container.name)
        run("ip", "netns", "delete", container.name)

    def restart(self, container: Running) -> Running:
        self.remove(container)
        return self.run(container.name, *container.ports, networks=container.networks)

    def kill_hard(self, container: Running) -> None:
        self._end(container.name)
        run("ip", "netns", "delete", container.name)

    def clean_up(self, container: Running) -> None:
        """Call del without the namespace. gc would remove every container, since cnitool lists no valid ones."""
        self._detach(container)

    def check(self, container: Running) -> None:
        self.call("check", container)

    def status(self, container: Running) -> None:
        self.call("status", container)

    def collect_garbage(self, container: Running) -> None:
        self.call("gc", container)

    def call(self, verb: str, container: Running, network: Network = FRONT) -> str:
        """Call add, del, check, gc or status for one network of a container."""
        environment = {
            "NETCONFPATH": str(self.cni_conf),
            "CNI_PATH": str(self.cni_bin),
            "CNI_IFNAME": f"eth{container.networks.index(network)}",
            "CAP_ARGS": json.dumps({"portMappings": [_mapping(port) for port in container.ports]}),
        }
        settings = [f"{key}={value}" for key, value in environment.items()]
        return self.command("env", *settings, self._program, verb, network.name, str(container.netns))

    def _detach(self, container: Running) -> None:
        for network in container.networks:
            self.call("del", container, network)

    def _end(self, name: str) -> None:
        server = self._servers.pop(name)
        server.kill()
        server.wait()


def _program() -> str:
    return shell("go_program", "cnitool", "github.com/containernetworking/cni/cnitool", _VERSION)


def _container_id(netns: Path) -> str:
    """Return cnitool's container ID for a namespace."""
    return f"cnitool-{sha512(str(netns).encode()).digest()[:10].hex()}"


def _mapping(port: Port) -> dict[str, str | int]:
    entry: dict[str, str | int] = {
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol,
    }
    return {**entry, "hostIP": port.host_ip} if port.host_ip else entry
