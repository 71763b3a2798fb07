"""The interface of the runtimes for the tests: start, run containers, restart. One subclass per runtime.

Everything runs in the network namespace that represents the host, see tests/kernel/topology.py. A runtime writes only below
its own directory, and none of its processes remains after `stop`.
"""

from __future__ import annotations

import json
import signal
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from .cgroup import Cgroup

if TYPE_CHECKING:
    from tests.kernel.topology import Host

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".cache"
CONFLISTS = PROJECT / "docs" / "conflists"
CNI_PLUGINS = ("bridge", "host-local", "loopback", "tuning")
SERVED_PORTS = (53, 80, 81, 82)
"""The ports of the server in each container, over TCP and UDP."""
HANDS_PORTS_ON = "it hands port mappings to the plugin"


@dataclass(frozen=True)
class Network:
    """A bridge network with both families."""

    name: str
    bridge: str
    subnets: dict[int, str]


FRONT = Network("front", "front0", {4: "10.70.0.0/24", 6: "fd70::/64"})
BACK = Network("back", "back0", {4: "10.71.0.0/24", 6: "fd71::/64"})


@dataclass(frozen=True)
class Port:
    """A port to publish. host_ip "": all addresses."""

    host_port: int
    container_port: int = 80
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass
class Running:
    """A container with its server, which answers with the container's name.

    id: its CNI container ID. netns: the path of its network namespace.
    addresses: by network, then family.
    """

    id: str
    name: str
    netns: Path
    ports: tuple[Port, ...] = ()
    networks: tuple[Network, ...] = (FRONT,)
    addresses: dict[str, dict[int, str]] = field(default_factory=dict)


class NotRun(Exception):
    """The runtime did not run the container; its error message."""


class Runtime(ABC):
    """A runtime configured for the plugin, with the networks FRONT (the default) and BACK."""

    name: ClassVar[str]
    cni_version: ClassVar[str] = "1.0.0"
    conflist_to_copy: ClassVar[str] = "containerd"
    lacks: ClassVar[dict[str, str]] = {}
    """The features that it lacks, with the reason for the table: `ports`, `own host ports`, `several networks`, `daemon`,
    `reload`, `verbs`, `status`."""

    def __init__(self, directory: Path, plugin: Path, host: Host) -> None:
        self.directory = directory
        self.host = host
        self.state_directory = directory / "quantum-nat"
        self.cni_bin = directory / "bin"
        self.cni_conf = directory / "net.d"
        self.cgroup = Cgroup(f"quantum-nat-{uuid4().hex[:8]}")
        self._prepare_cni(plugin)

    def _prepare_cni(self, plugin: Path) -> None:
        self.cni_bin.mkdir(parents=True)
        self.cni_conf.mkdir()
        shell("cni_plugins", str(self.cni_bin), *CNI_PLUGINS)
        (self.cni_bin / "quantum-nat").symlink_to(plugin)
        for number, network in enumerate((FRONT, BACK)):
            self.write_conflist(f"{number}0-{network.name}", self.conflist_to_copy, network)

    def write_conflist(self, name: str, to_copy: str, network: Network) -> None:
        """Configure a network from a list in docs/conflists, with other addresses and private directories."""
        conflist = json.loads((CONFLISTS / f"{to_copy}.conflist").read_text())
        conflist |= {"cniVersion": self.cni_version, "name": network.name}
        for plugin in conflist["plugins"]:
            if plugin["type"] == "bridge":
                plugin["bridge"] = network.bridge
                plugin["ipam"]["dataDir"] = str(self.directory / "ipam")
                plugin["ipam"]["ranges"] = [[{"subnet": subnet}] for subnet in network.subnets.values()]
            if plugin["type"] == "quantum-nat":
                plugin["stateDir"] = str(self.state_directory)
        (self.cni_conf / f"{name}.conflist").write_text(json.dumps(conflist, indent=2))

    def command(self, *command: str, stdin: str = "") -> str:
        """Run a command in the host's namespace and return its output; raise NotRun with its error output."""
        done = subprocess.run(
            ["nsenter", f"--net={self.host.path}", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise NotRun(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    @classmethod
    @abstractmethod
    def install(cls) -> None:
        """Install Debian packages or Go programs that it needs, unless they are installed."""

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def start(self) -> None:
        """Write its configuration, start its daemon if it has one, and make the image."""

    @abstractmethod
    def stop(self) -> None:
        """Kill all its processes, including containers, by process ID, and unmount what it has mounted."""

    @abstractmethod
    def run(self, name: str, *ports: Port, networks: tuple[Network, ...] = (FRONT,)) -> Running:
        """Run a container; raise NotRun if that fails."""

    @abstractmethod
    def remove(self, container: Running) -> None:
        """Stop and remove it, as a user would."""

    @abstractmethod
    def restart(self, container: Running) -> Running:
        """Stop it and start it again with the same ports."""

    @abstractmethod
    def kill_hard(self, container: Running) -> None:
        """Kill it without the runtime's knowledge, so that DEL is not called."""

    @abstractmethod
    def clean_up(self, container: Running) -> None:
        """Clean up after a container that died without the runtime's knowledge, in the runtime's own way, or with GC."""

    def start_daemon(self) -> None:
        """Start the daemon, and wait until it answers."""
        raise NotImplementedError

    def end_daemon(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Stop the daemon, but not its containers; SIGKILL is a crash."""
        raise NotImplementedError

    def restart_daemon(self) -> None:
        """Restart the daemon while containers run."""
        self.end_daemon()
        self.start_daemon()

    def reload_network(self, container: Running) -> None:
        """Restore the rules of a running container."""
        raise NotImplementedError

    def check(self, container: Running) -> None:
        """Make the runtime call CHECK; raise NotRun if it fails."""
        raise NotImplementedError

    def status(self, container: Running) -> None:
        """Make the runtime call STATUS for the container's network; raise NotRun if it fails."""
        raise NotImplementedError

    def collect_garbage(self, container: Running) -> None:
        """Make the runtime call GC for the container's network."""
        raise NotImplementedError


def shell(function: str, *arguments: str) -> str:
    """Call a function in setup.bash, and return its output; messages go to stderr."""
    script = f'. "{PROJECT}/conformance/setup.bash"; "$@"'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script, "conformance", function, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def addresses_in(netns: Path, networks: tuple[Network, ...] = (FRONT, BACK)) -> dict[str, dict[int, str]]:
    """Return the addresses in a namespace by network and family."""
    listed = subprocess.run(
        ["nsenter", f"--net={netns}", "ip", "-json", "address"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    local = [
        (6 if entry["family"] == "inet6" else 4, entry["local"])
        for link in json.loads(listed)
        for entry in link["addr_info"]
        if entry["scope"] == "global"
    ]
    found: dict[str, dict[int, str]] = {}
    for network in networks:
        for family, address in local:
            if family in network.subnets and address.startswith(
                network.subnets[family].partition("0/")[0].partition("::/")[0]
            ):
                found.setdefault(network.name, {})[family] = address
    return found
