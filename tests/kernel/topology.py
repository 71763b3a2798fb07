"""The test topology: network namespaces that the tests send packets through.

    client ---- uplink --- host --- cni0 --- containers (10.88.0.0/24, fd88::/64)
    198.51.100.2          |   \\--- cni1 --- containers (10.99.0.0/24, fd99::/64)
    2001:db8:1::2         198.51.100.1 and .3, 2001:db8:1::1 and ::3

The client has a route to the uplink's network only, so a reply from it proves that the source was translated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .peer import Answer, Refused, Server, TimedOut, ask, inside

if TYPE_CHECKING:
    from collections.abc import Callable

NETNS_DIRECTORY = Path("/run/netns")
CLIENT = {4: "198.51.100.2", 6: "2001:db8:1::2"}
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
HOST_SECONDARY = {4: "198.51.100.3", 6: "2001:db8:1::3"}
BRIDGES = {"cni0": {4: "10.88.0.{}/24", 6: "fd88::{}/64"}, "cni1": {4: "10.99.0.{}/24", 6: "fd99::{}/64"}}
SUBNETS = {"cni0": {4: "10.88.0.0/24", 6: "fd88::/64"}, "cni1": {4: "10.99.0.0/24", 6: "fd99::/64"}}
MARTIAN = "192.0.2.1"  # on the wire this is 127.0.0.1: see Namespace.send_martians
NO_REPLY_TIMEOUT_S = 0.4  # how long to wait for a reply that must not come
_numbers = count()
_ATTACK = f"""table inet attack {{
	chain leave {{
		type filter hook postrouting priority 300
		ip daddr {MARTIAN} ip daddr set 127.0.0.1
	}}
	chain enter {{
		type filter hook prerouting priority -400
		ip saddr 127.0.0.1 iif != "lo" ip saddr set {MARTIAN}
	}}
}}"""


def run(*command: str, stdin: str = "") -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{stdin}"
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 5) -> None:
    """Poll a condition, and fail if it is not met in time; `what` describes it."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"timed out after {timeout_s} s: {what}"
        time.sleep(0.005)


class Namespace:
    """A network namespace with a unique name, and the servers in it."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.name = f"qn-{os.getpid()}-{next(_numbers)}-{kind}"
        self.path = NETNS_DIRECTORY / self.name
        self._stack = stack
        run("ip", "netns", "add", self.name)
        stack.callback(self.remove)
        for setting in ("ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"):
            self.set_sysctl(setting, "0")
        self.ip("link set lo up")

    def remove(self) -> None:
        """Remove its name; the kernel removes the namespace after its last process."""
        if self.path.exists():
            run("ip", "netns", "delete", self.name)

    def ip(self, *commands: str) -> None:
        """Run ip(8) commands inside."""
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(commands) + "\n")

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a command inside."""
        return run("nsenter", f"--net={self.path}", "--", *command, stdin=stdin)

    def sysctl(self, name: str) -> str:
        """Read a sysctl by its path below /proc/sys/net."""
        with inside(self.path):
            return Path("/proc/sys/net", name).read_text().strip()

    def set_sysctl(self, name: str, value: str) -> None:
        with inside(self.path):
            Path("/proc/sys/net", name).write_text(value)

    def serve(self, name: str, port: int, address: str | None = None) -> Server:
        """Start a server, which stops when the test ends."""
        return self._stack.enter_context(Server(self.path, name, port, address))

    def ask(
        self, address: str, port: int, protocol: str = "tcp", *, source: str | None = None, timeout: float = 3
    ) -> Answer:
        """Send a request to a server, and return its answer."""
        return ask(self.path, protocol, address, port, source=source, timeout=timeout)

    def cannot_reach(self, address: str, port: int, protocol: str = "tcp", *, source: str | None = None) -> bool:
        """Return whether there is no reply at all, not even a refusal."""
        try:
            self.ask(address, port, protocol, source=source, timeout=NO_REPLY_TIMEOUT_S)
        except TimedOut:
            return True
        return False

    def is_refused(self, address: str, port: int, protocol: str = "tcp") -> bool:
        """Return whether the connection is refused at once."""
        try:
            self.ask(address, port, protocol)
        except Refused:
            return True
        return False

    def wait_for_replies(self, addresses: list[str]) -> None:
        """Wait until these addresses reply: a new IPv6 address may not have joined its multicast group yet."""
        wait_until(lambda: all(map(self._is_answered_by, addresses)), f"replies from {' and '.join(addresses)}")

    def _is_answered_by(self, address: str) -> bool:
        """Return whether a closed port refuses."""
        try:
            self.ask(address, 1, timeout=0.1)
        except Refused:
            return True
        except (TimedOut, OSError):
            return False
        return False

    def send_martians(self, gateway: str) -> None:
        """Attack: what this namespace sends to MARTIAN leaves as a packet to 127.0.0.1, and replies return."""
        self.ip(f"route add {MARTIAN} via {gateway}")
        self.run("nft", "-f", "-", stdin=_ATTACK)

    def spoof_localhost(self, port: int) -> None:
        """Attack: datagrams from this namespace to this port leave with the source address 127.0.0.1."""
        self.run(
            "nft", "-f", "-", stdin=f"{_ATTACK}\nadd rule inet attack leave udp dport {port} ip saddr set 127.0.0.1"
        )


class Container(Namespace):
    """A namespace that a bridge plugin has attached to a bridge as eth0."""

    def __init__(self, host: Host, stack: ExitStack, number: int, bridge: str, *, families: tuple[int, ...]) -> None:
        super().__init__("container", stack)
        self.id = self.name
        self.host = host
        self.interface = "eth0"
        self.bridge = bridge
        self.networks = {family: BRIDGES[bridge][family].format(number) for family in families}
        self.address = {family: network.partition("/")[0] for family, network in self.networks.items()}
        self.connect("eth0", bridge, self.networks)

    def connect(self, interface: str, bridge: str, networks: dict[int, str]) -> None:
        """Do what the bridge plugin does: a veth into the bridge with hairpin mode, addresses, default routes."""
        veth = f"veth{next(_numbers)}"
        self.host.ip(
            f"link add {veth} type veth peer name {interface} netns {self.name}",
            f"link set {veth} master {bridge}",
            f"link set {veth} type bridge_slave hairpin on",
            f"link set {veth} up",
        )
        commands = [f"link set {interface} up"]
        for family, network in networks.items():
            gateway = BRIDGES[bridge][family].format(1).partition("/")[0]
            commands.append(f"address add {network} dev {interface}{' nodad' if family == 6 else ''}")
            commands.append(f"route replace default via {gateway} dev {interface}")
        self.ip(*commands)
        addresses = [network.partition("/")[0] for network in networks.values()]
        for address in addresses:  # the host may remember the address's previous owner
            self.host.ip(f"neigh flush to {address}")
        self.host.wait_for_replies(addresses)

    def previous_result(self) -> dict[str, Any]:
        """Return the bridge plugin's result."""
        return {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": self.bridge, "mac": "02:00:00:00:00:01"},
                {"name": self.interface, "mac": "02:00:00:00:00:02", "sandbox": str(self.path)},
            ],
            "ips": [{"interface": 1, "address": network} for network in self.networks.values()],
            "dns": {},
        }


class Host(Namespace):
    """The namespace that represents the host: bridges, an uplink to the client, a default route through it."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__("host", stack)
        self.backend = "nftables"
        self._used: dict[str, int] = {}
        for number, (bridge, networks) in enumerate(BRIDGES.items()):
            self.ip(
                # A fixed MAC address, as the bridge plugin sets: otherwise it changes as ports are added.
                f"link add {bridge} address 02:00:00:00:01:0{number} type bridge mcast_snooping 0",
                f"address add {networks[4].format(1)} dev {bridge}",
                f"address add {networks[6].format(1)} dev {bridge} nodad",
                f"link set {bridge} up",
            )
        self.client = Namespace("client", stack)
        self.add_uplink("uplink", HOST, CLIENT)
        self.ip(
            f"address add {HOST_SECONDARY[4]}/24 dev uplink",
            f"address add {HOST_SECONDARY[6]}/64 dev uplink nodad preferred_lft 0",  # never chosen as a source
            f"route add default via {CLIENT[4]} dev uplink",
            f"route add default via {CLIENT[6]} dev uplink",
        )

    def add_uplink(self, name: str, own: dict[int, str], peers: dict[int, str]) -> None:
        """Connect the host and the client with one more veth pair; both ends have the same name."""
        self.ip(f"link add {name} type veth peer name {name} netns {self.client.name}")
        for end, addresses in ((self, own), (self.client, peers)):
            end.ip(
                f"link set {name} up",
                f"address add {addresses[4]}/24 dev {name}",
                f"address add {addresses[6]}/64 dev {name} nodad",
            )

    def container(self, bridge: str = "cni0", *, number: int = 0, families: tuple[int, ...] = (4, 6)) -> Container:
        """Make a container; `number` is the last part of its addresses, 0 for the next free one."""
        if not number:
            number = self._used[bridge] = self._used.get(bridge, 10) + 1
        return Container(self, self._stack, number, bridge, families=families)

    def add_client_routes(self, bridge: str = "cni0") -> None:
        """Give the client routes to the containers, through the host."""
        self.client.ip(*(f"route add {SUBNETS[bridge][f]} via {HOST[f]}" for f in (4, 6)))

    def set_bridge_netfilter(self, value: str) -> None:
        """Set whether bridged packets pass the IP hooks (br_netfilter): "1" or "0"."""
        try:
            for name in ("iptables", "ip6tables"):
                self.set_sysctl(f"bridge/bridge-nf-call-{name}", value)
        except FileNotFoundError:
            if value == "1":
                pytest.skip("the kernel has no br_netfilter")

    def require_legacy_iptables(self) -> None:
        """Skip the test if the kernel does not support it."""
        command = ("nsenter", f"--net={self.path}", "iptables-legacy-save", "-t", "nat")
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("the kernel has no iptables-legacy")

    def iptables_rules(self) -> list[str]:
        """Return the plugin's rules for both families, as iptables-save lists them."""
        saves = [f"{prefix}-{self.backend.removeprefix('iptables-')}-save" for prefix in ("iptables", "ip6tables")]
        lines = [line for save in saves for line in self.run(save).splitlines()]
        return [line for line in lines if "QUANTUM" in line]

    def ruleset(self) -> str:
        """Return the plugin's table, or nft's error message."""
        if self.backend != "nftables":
            return "\n".join(self.iptables_rules())
        command = ("nsenter", f"--net={self.path}", "nft", "list", "table", "inet", "quantum")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout or done.stderr

    def disable_guard(self) -> None:
        """Remove the rules that protect 127.0.0.0/8, to show that an attack works without them."""
        if self.backend == "nftables":
            self.run("nft", "flush chain inet quantum guard")
        else:
            self.run(self.backend, "-t", "raw", "-F", "QUANTUM-GUARD")

    def installed(self) -> set[str]:
        """Return what is installed for any container: the sets and maps that have elements, or the rules."""
        if self.backend != "nftables":
            return {line for line in self.iptables_rules() if "--comment" in line}
        return set(self.elements()) if "No such file" not in self.ruleset() else set()

    def elements(self) -> dict[str, list[Any]]:
        """Return the elements of the sets and maps that have any."""
        listed = json.loads(self.run("nft", "-j", "list", "table", "inet", "quantum"))["nftables"]
        sets = [item.get("set") or item.get("map") for item in listed]
        return {
            entry["name"]: entry["elem"]
            for entry in sets
            if entry and "elem" in entry and "constant" not in entry.get("flags", ())
        }

    def owners(self) -> set[str]:
        """Return the comments of all elements, or rules."""
        if self.backend != "nftables":
            found = {owner for line in self.iptables_rules() for owner in re.findall(r'--comment "?([^" ]+)', line)}
        else:
            found = set()
            _collect_comments(self.elements(), found)
        # What follows a colon is the realm of the test's state directory.
        return {comment.partition(":")[0] for comment in found}


def keep_conntrack_enabled(host: Host) -> None:
    """Let another table use connection tracking and NAT, so that both stay active without our table."""
    host.run(
        "nft", "add table inet firewall { chain c { type nat hook prerouting priority 0; ct state new accept; }; }"
    )


def connect_second_network(container: Container) -> Container:
    """Connect eth1 to cni1, and return the container as seen by that attachment."""
    networks = {4: "10.99.0.7/24", 6: "fd99::7/64"}
    container.connect("eth1", "cni1", networks)
    container.ip("route replace default via 10.88.0.1", "route replace default via fd88::1")
    second = object.__new__(Container)
    second.__dict__.update(container.__dict__)
    second.interface, second.bridge, second.networks = "eth1", "cni1", networks
    second.address = {family: network.partition("/")[0] for family, network in networks.items()}
    return second


def _collect_comments(item: Any, found: set[str]) -> None:
    if isinstance(item, dict):
        if isinstance(item.get("comment"), str):
            found.add(item["comment"])
        item = list(item.values())
    if isinstance(item, list):
        for part in item:
            _collect_comments(part, found)
