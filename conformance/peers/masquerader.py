"""Outbound NAT by bridge's own ipMasq, or by Quantum NAT after bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.kernel.plugin import Plugin
from tests.kernel.topology import Namespace

from .port_mapper import CNI_PATH, QUANTUM_NAT, QUANTUM_NAT_IPTABLES

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.kernel.topology import Host

IPMASQ_IPTABLES, IPMASQ_NFTABLES = "ipMasq-iptables", "ipMasq-nftables"
IPMASQ = (IPMASQ_IPTABLES, IPMASQ_NFTABLES)
MASQUERADERS = (*IPMASQ, QUANTUM_NAT, QUANTUM_NAT_IPTABLES)
VERSION = "1.1.0"  # the first with GC


class Member(Namespace):
    """A container that the bridge plugin attaches, with the given addresses."""

    def __init__(self, stack: ExitStack, network: str, addresses: tuple[str, ...]) -> None:
        super().__init__("member", stack)
        self.id = self.name
        self.interface = "eth0"
        self.network = network
        self.networks = addresses
        self.results: list[dict[str, Any]] = []  # of each plugin, in order

    @property
    def addresses(self) -> list[str]:
        return [network.partition("/")[0] for network in self.networks]


class Masquerader:
    """A subject: calls bridge, and then Quantum NAT if that is the subject, as a runtime does."""

    def __init__(
        self, name: str, host: Host, stack: ExitStack, state_directory: Path, *, keep_ipmasq: str = ""
    ) -> None:
        """Set up the subject. `keep_ipmasq`: leave bridge's ipMasq on beside ours."""
        self.is_ours = name.startswith(QUANTUM_NAT)
        self._bridge_backend = (keep_ipmasq or name).rpartition("-")[2]
        self._has_ipmasq = bool(keep_ipmasq) or not self.is_ours
        self._backend = "iptables" if name.endswith("iptables") else "nftables"
        self._host, self._stack = host, stack
        self._bridge = Plugin(host, state_directory)
        self._bridge.command = [str(CNI_PATH / "bridge")]
        self._nat = Plugin(host, state_directory)

    def member(self, *addresses: str, network: str = "net") -> Member:
        """Make a container without calling plugins; addresses include the prefix length."""
        return Member(self._stack, network, addresses)

    def attach(self, *addresses: str, network: str = "net") -> Member:
        return self.add(self.member(*addresses, network=network))

    def add(self, member: Member, *, masquerade: bool = True) -> Member:
        """Attach a container; `masquerade` is the setting of its network."""
        for plugin, configuration in self._chain(member.network, member.networks, masquerade=masquerade):
            if member.results:
                configuration["prevResult"] = member.results[-1]
            answer = plugin.call("ADD", configuration, member, CNI_PATH=str(CNI_PATH))  # type: ignore[arg-type]
            member.results.append(answer)
        for address in member.addresses:  # the host may remember the address's previous owner
            self._host.ip(f"neigh flush to {address}")
        self._host.wait_for_replies(member.addresses)
        return member

    def delete(self, member: Member, *, without_namespace: bool = False) -> None:
        """Detach a container, in reverse order; `without_namespace` as a runtime does if the namespace is gone."""
        environment = {"CNI_NETNS": ""} if without_namespace else {}
        for plugin, configuration in reversed(self._chain(member.network, member.networks)):
            configuration["prevResult"] = member.results[-1]
            plugin.call("DEL", configuration, member, CNI_PATH=str(CNI_PATH), **environment)

    def collect_garbage(self, network: str, *valid: Member) -> None:
        """Call GC with the attachments that are still valid."""
        attachments = [{"containerID": member.id, "ifname": member.interface} for member in valid]
        for plugin, configuration in self._chain(network, ()):
            configuration["cni.dev/valid-attachments"] = attachments
            plugin.call("GC", configuration, CNI_PATH=str(CNI_PATH))

    def _chain(
        self, network: str, addresses: tuple[str, ...], *, masquerade: bool = True
    ) -> list[tuple[Plugin, dict[str, Any]]]:
        common = {"cniVersion": VERSION, "name": network}
        bridge = common | {
            "type": "bridge",
            "bridge": f"br-{network}",
            "isGateway": True,
            "hairpinMode": True,
            "ipMasq": masquerade and self._has_ipmasq,
            "ipam": {
                "type": "static",
                "addresses": [{"address": address, "gateway": _gateway(address)} for address in addresses],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        if self._has_ipmasq:
            bridge["ipMasqBackend"] = self._bridge_backend
        if not self.is_ours:
            return [(self._bridge, bridge)]
        nat = self._nat.configuration(network, backend=self._backend, masquerade=masquerade)
        return [(self._bridge, bridge), (self._nat, nat)]


def _gateway(address: str) -> str:
    """Return the first address of the subnet; all subnets here end at the last separator."""
    network = address.partition("/")[0]
    return network[: max(network.rfind("."), network.rfind(":")) + 1] + "1"
