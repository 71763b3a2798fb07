"""netavark and Quantum NAT with the same interface: run a container with ports on networks, stop it, reload.

netavark creates bridges, addresses and routes itself. For Quantum NAT the test topology creates them, as the bridge plugin
would.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.kernel.plugin import Plugin
from tests.kernel.topology import BRIDGES, Namespace, connect_second_network

from .port_mapper import CNI_PATH, QUANTUM_NAT, QUANTUM_NAT_IPTABLES, PortMapper, previous_result

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.kernel.plugin import Attachment
    from tests.kernel.topology import Container, Host

NETAVARK = "netavark"
FABRICS = (NETAVARK, QUANTUM_NAT, QUANTUM_NAT_IPTABLES)
PROGRAM = Path(os.environ.get("CONFORMANCE_NETAVARK") or ".cache/rust/netavark-2.1.0/bin/netavark").resolve()
_GATEWAYS = {bridge: {f: network.format(1) for f, network in networks.items()} for bridge, networks in BRIDGES.items()}


class Refusal(Exception):
    """The program refused to run the container; its error message."""


class Port(NamedTuple):
    """A published port, or a range of `length` ports."""

    host_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    container_port: int = 80
    length: int = 1


class Fabric:
    """The common interface. Networks are named cni0 and cni1, after the bridges; a container is a namespace of the topology."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self.host = host
        self.stack = stack

    def run(
        self, *ports: Port, families: tuple[int, ...] = (4, 6), networks: tuple[str, ...] = ("cni0",), source: str = ""
    ) -> Namespace:
        """Attach a new container; `source` is its source address outside. Raises Refusal."""
        raise NotImplementedError

    def stop(self, container: Namespace) -> None:
        raise NotImplementedError

    def stop_without_namespace(self, container: Namespace) -> None:
        """Remove a container's namespace, then stop it."""
        raise NotImplementedError

    def reload(self) -> None:
        """Restore the rules after a flush of the ruleset."""
        raise NotImplementedError

    def address(self, container: Namespace) -> str:
        """Return the container's IPv4 address on its first network."""
        raise NotImplementedError


class Netavark(Fabric):
    """netavark's own command line: its JSON on stdin, the namespace as an argument."""

    def __init__(self, host: Host, stack: ExitStack, directory: Path) -> None:
        super().__init__(host, stack)
        if not PROGRAM.exists():
            pytest.skip("netavark is not installed; cargo 1.88 or newer builds it.")
        for bridge in BRIDGES:  # netavark creates them itself
            host.ip(f"link delete {bridge}")
        self._directory = directory
        self._wishes: dict[str, dict[str, Any]] = {}

    def run(
        self, *ports: Port, families: tuple[int, ...] = (4, 6), networks: tuple[str, ...] = ("cni0",), source: str = ""
    ) -> Namespace:
        container = Namespace("container", self.stack)
        number = 11 + len(self._wishes)
        options = {f"outbound_addr{6 if ':' in source else 4}": source} if source else {}
        self._wishes[container.name] = {
            "container_id": container.name,
            "container_name": container.name,
            "port_mappings": [_entry(port) for port in ports],
            "networks": {name: _membership(at, name, number, families) for at, name in enumerate(networks)},
            "network_info": {name: _network(name, families, options) for name in networks},
        }
        self._call("setup", container)
        return container

    def stop(self, container: Namespace) -> None:
        self._call("teardown", container)

    def stop_without_namespace(self, container: Namespace) -> None:
        container.remove()
        self._call("teardown", container)

    def reload(self) -> None:
        self._start("firewall-reload", stdin="")

    def address(self, container: Namespace) -> str:
        membership = next(iter(self._wishes[container.name]["networks"].values()))
        return str(membership["static_ips"][0])

    def _call(self, verb: str, container: Namespace) -> None:
        self._start(verb, str(container.path), stdin=json.dumps(self._wishes[container.name]))

    def _start(self, *arguments: str, stdin: str) -> None:
        line = ["nsenter", f"--net={self.host.path}", "--", str(PROGRAM), "--config", str(self._directory), *arguments]
        environment = {"PATH": os.environ["PATH"], "NETAVARK_FW": "nftables"}
        done = subprocess.run(
            line, input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise Refusal(f"{done.stdout}{done.stderr}")


def _entry(port: Port) -> dict[str, Any]:
    return {
        "host_ip": port.host_ip,
        "host_port": port.host_port,
        "container_port": port.container_port,
        "protocol": port.protocol,
        "range": port.length,
    }


def _membership(at: int, bridge: str, number: int, families: tuple[int, ...]) -> dict[str, Any]:
    addresses = [BRIDGES[bridge][family].format(number).partition("/")[0] for family in families]
    return {"interface_name": f"eth{at}", "static_ips": addresses}


def _network(bridge: str, families: tuple[int, ...], options: dict[str, str]) -> dict[str, Any]:
    gateways = [_GATEWAYS[bridge][family] for family in families]
    prefixes = {family: BRIDGES[bridge][family].format(0).replace("::0/", "::/") for family in families}
    subnets = [{"subnet": prefixes[f], "gateway": g.partition("/")[0]} for f, g in zip(families, gateways, strict=True)]
    return {
        "name": bridge,
        "id": f"{bridge:0<64}".replace("c", "a").replace("n", "b").replace("i", "d"),
        "driver": "bridge",
        "network_interface": bridge,
        "subnets": subnets,
        "ipv6_enabled": 6 in families,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
        "options": options,
    }


class QuantumNat(Fabric):
    """Our plugin after a bridge, called as podman would for the same request."""

    def __init__(self, name: str, host: Host, stack: ExitStack, directory: Path) -> None:
        super().__init__(host, stack)
        self._nat = PortMapper(name, host, directory)
        self._attachments: dict[str, list[Attachment]] = {}

    def run(
        self, *ports: Port, families: tuple[int, ...] = (4, 6), networks: tuple[str, ...] = ("cni0",), source: str = ""
    ) -> Container:
        container = self.host.container(networks[0], families=families)
        keys = {"snatAddress": source} if source else {}
        attached = [container] if len(networks) == 1 else [container, connect_second_network(container)]
        self._attachments[container.name] = []
        for member, network in zip(attached, networks, strict=True):
            attachment = self._nat.attachment(member, *_entries(ports), network=network, **keys)
            try:
                self._attachments[container.name].append(attachment.add())
            except Exception as error:
                raise Refusal(str(error)) from error
        return container

    def stop(self, container: Namespace) -> None:
        for attachment in self._attachments[container.name]:
            attachment.delete()

    def stop_without_namespace(self, container: Namespace) -> None:
        container.remove()
        for attachment in self._attachments[container.name]:
            attachment.delete_again_like_containerd()

    def reload(self) -> None:
        done = self._nat.operate("reconcile")
        assert done.returncode == 0, done.stderr

    def address(self, container: Namespace) -> str:
        return self._attachments[container.name][0].container.address[4]

    def isolate(self, container: Namespace) -> None:
        """Chain the plugin `firewall`, as podman's CNI networks do."""
        firewall = Plugin(self.host, self._nat.state_directory)
        firewall.command = [str(CNI_PATH / "firewall")]
        for attachment in self._attachments[container.name]:
            configuration = {
                "cniVersion": "1.0.0",
                "name": attachment.configuration["name"],
                "type": "firewall",
                "ingressPolicy": "same-bridge",
                "prevResult": previous_result(attachment.container, "1.0.0"),
            }
            firewall.call("ADD", configuration, attachment.container)


def _entries(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
    """Return a range as runtimes send it, one entry per port."""
    return [
        {
            "hostPort": port.host_port + number,
            "containerPort": port.container_port + number,
            "protocol": port.protocol,
            "hostIP": port.host_ip,
        }
        for port in ports
        for number in range(port.length)
    ]
