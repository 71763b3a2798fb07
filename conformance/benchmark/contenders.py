"""The contenders, and how each is called: CNI plugins with environment and standard input, netavark with arguments."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.peer import inside

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = "bench"
INTERFACE = "eth0"
GATEWAY = "10.88.0.1/16"
BACKENDS = ("iptables", "nftables")
OURS, OURS_PIP = "quantum-nat", "quantum-nat (pip)"
NETAVARKS = NETAVARK_IPTABLES, NETAVARK_NFTABLES = "netavark (iptables)", "netavark (nftables)"  # Debian's, 2.1.0
NETAVARK_NETWORK = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9"
BARE_PYTHON = ("/usr/bin/python3", "-I", "-S", "-c", "pass")


class CallFailed(Exception):
    """A contender failed, so its figures would be meaningless."""


class Mapping(NamedTuple):
    """A published port."""

    host_port: int
    protocol: str = "tcp"
    container_port: int = 80

    def as_cni(self) -> dict[str, object]:
        return {"hostPort": self.host_port, "containerPort": self.container_port, "protocol": self.protocol}


class Request(NamedTuple):
    """A container to attach. address: without prefix length. namespace: a path."""

    container_id: str
    address: str
    mappings: tuple[Mapping, ...]
    netns: Path

    @property
    def network(self) -> str:
        """The address with its network's prefix length."""
        return f"{self.address}/{GATEWAY.partition('/')[2]}"


class Invocation(NamedTuple):
    """A program with its arguments, environment and standard input."""

    command: tuple[str, ...]
    stdin: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Plugin:
    """A CNI plugin with a configuration, in which `{private}` stands for a directory of the host.

    makes_interface: whether it creates the interface, rather than being chained after a plugin that does.
    """

    name: str
    program: str
    keys: dict[str, object] = field(default_factory=dict)
    makes_interface: bool = False
    verbs: tuple[str, ...] = ("ADD", "CHECK", "DEL")

    def invocation(self, verb: str, request: Request, private: Path) -> Invocation:
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": request.container_id,
            "CNI_NETNS": str(request.netns),
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": os.path.dirname(self.program),  # noqa: PTH120 - it stays text
        }
        text = json.dumps(self._configuration(request)).replace("{private}", str(private))
        return Invocation((self.program,), text, environment)

    def _configuration(self, request: Request) -> dict[str, object]:
        base: dict[str, object] = {"cniVersion": "1.0.0", "name": NETWORK, **self.keys}
        if self.makes_interface:
            return {**base, "ipam": _static_address(request)}
        return {
            **base,
            "runtimeConfig": {"portMappings": [mapping.as_cni() for mapping in request.mappings]},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": INTERFACE, "sandbox": str(request.netns)}],
                "ips": [{"address": request.network, "interface": 0}],
            },
        }


def _static_address(request: Request) -> dict[str, object]:
    gateway = GATEWAY.partition("/")[0]
    return {
        "type": "static",
        "addresses": [{"address": request.network, "gateway": gateway}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }


@dataclass(frozen=True)
class Netavark:
    """podman's network stack, which sets up interface, outbound NAT and published ports in one call."""

    name: str
    program: str
    makes_interface: bool = True
    verbs: tuple[str, ...] = ("ADD", "DEL")

    def invocation(self, verb: str, request: Request, private: Path) -> Invocation:
        subcommand = {"ADD": "setup", "DEL": "teardown"}[verb]
        command = (self.program, "--config", str(private), subcommand, str(request.netns))
        firewall = "nftables" if self.name == NETAVARK_NFTABLES else "iptables"
        environment = {"PATH": os.environ["PATH"], "NETAVARK_FW": firewall}
        return Invocation(command, json.dumps(self._options(request)), environment)

    def _options(self, request: Request) -> dict[str, object]:
        gateway = GATEWAY.partition("/")[0]
        network = {
            "name": NETWORK,
            "id": NETAVARK_NETWORK,
            "driver": "bridge",
            "network_interface": "podman0",
            "subnets": [{"gateway": gateway, "subnet": "10.88.0.0/16"}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        return {
            "container_id": request.container_id,
            "container_name": request.container_id[:12],
            "port_mappings": [
                {
                    "host_ip": "",
                    "host_port": mapping.host_port,
                    "container_port": mapping.container_port,
                    "protocol": mapping.protocol,
                    "range": 1,
                }
                for mapping in request.mappings
            ],
            "networks": {NETWORK: {"static_ips": [request.address], "interface_name": INTERFACE}},
            "network_info": {NETWORK: network},
        }


Contender = Plugin | Netavark


def portmap_of(backend: str) -> str:
    """Return the name of portmap with a backend."""
    return f"portmap ({backend})"


def masquerade_of(backend: str) -> str:
    """Return the name of bridge's ipMasq with a backend."""
    return f"bridge ipMasq ({backend})"


def both_of(backend: str) -> str:
    """Return the name of the equivalent of our work: portmap plus bridge's extra time for ipMasq."""
    return f"portmap + ipMasq ({backend})"


PLAIN_BRIDGE = "bridge"


@dataclass(frozen=True)
class Programs:
    """The paths of the programs."""

    ours: str
    ours_pip: str
    plugins: str
    netavarks: dict[str, str]

    def contenders(self) -> dict[str, Contender]:
        """Return all contenders, by name."""
        ours: dict[str, object] = {"type": "quantum-nat", "stateDir": "{private}/state"}
        found: list[Contender] = [Plugin(OURS, self.ours, ours), Plugin(OURS_PIP, self.ours_pip, ours)]
        found += [Plugin(portmap_of(b), f"{self.plugins}/portmap", {"type": "portmap", "backend": b}) for b in BACKENDS]
        found += [self._bridge(PLAIN_BRIDGE, {"ipMasq": False})]
        found += [self._bridge(masquerade_of(b), {"ipMasq": True, "ipMasqBackend": b}) for b in BACKENDS]
        found += [Netavark(name, program) for name, program in self.netavarks.items()]
        return {contender.name: contender for contender in found}

    def _bridge(self, name: str, keys: dict[str, object]) -> Plugin:
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, **keys}
        return Plugin(name, f"{self.plugins}/bridge", bridge, makes_interface=True, verbs=("ADD", "DEL"))


def call(contender: Contender, verb: str, request: Request, host: Path, private: Path) -> float:
    """Run a contender once in the host's namespace; return the milliseconds from spawn to exit. Raises CallFailed."""
    return run_in(host, contender.invocation(verb, request, private))


def run_in(host: Path, invocation: Invocation) -> float:
    """Run a program in a network namespace; return the milliseconds from spawn to exit. Raises CallFailed."""
    command, stdin, environment = invocation
    with inside(host):
        start = time.perf_counter()
        done = subprocess.run(
            command, input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        took_ms = (time.perf_counter() - start) * 1000
    if done.returncode:
        raise CallFailed(f"{' '.join(command)} ({environment.get('CNI_COMMAND', '')}): {done.stdout} {done.stderr}")
    return took_ms
