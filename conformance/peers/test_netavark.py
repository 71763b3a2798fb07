"""netavark's tests of published ports, with netavark and with Quantum NAT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.topology import CLIENT, HOST, HOST_SECONDARY, Host, Namespace

from .fabric import FABRICS, NETAVARK, Fabric, Netavark, Port, QuantumNat, Refusal
from .port_mapper import differs

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

TABLE = "Published ports, as in netavark"

pytestmark = pytest.mark.parametrize("subject", FABRICS)
stacks = pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["ipv4", "ipv6", "dual"])


@pytest.fixture
def fabric(subject: str, host: Host, stack: ExitStack, tmp_path: Path) -> Fabric:
    """A subject that runs containers."""
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        host.set_sysctl(setting, "1")
    if subject == NETAVARK:
        return Netavark(host, stack, tmp_path)
    return QuantumNat(subject, host, stack, tmp_path / "state")


@stacks
def test_published(host: Host, client: Namespace, fabric: Fabric, families: tuple[int, ...]) -> None:
    """A port is published on IPv4, IPv6 and both, for TCP, UDP and SCTP: from outside and from the host."""
    protocols = ("tcp", "udp", "sctp")
    fabric.run(*(Port(8080, protocol) for protocol in protocols), families=families).serve("web", 80)
    for family in families:
        for protocol in protocols:
            assert client.ask(HOST[family], 8080, protocol).server == "web"
            assert host.ask(HOST[family], 8080, protocol).server == "web"


@stacks
def test_range(client: Namespace, fabric: Fabric, families: tuple[int, ...]) -> None:
    """A range of three ports is published, on IPv4, IPv6 and both, for TCP and UDP, each to its own container port."""
    container = fabric.run(Port(8080, "tcp", length=3), Port(8080, "udp", length=3), families=families)
    for number in range(3):
        container.serve(f"number{number}", 80 + number)
    for family in families:
        for protocol in ("tcp", "udp"):
            found = [client.ask(HOST[family], 8080 + number, protocol).server for number in range(3)]
            assert found == ["number0", "number1", "number2"]


@pytest.mark.parametrize("family", [4, 6])
def test_host_ip(client: Namespace, fabric: Fabric, family: int) -> None:
    """A port published on one address of the host is closed at the others, for TCP and UDP."""
    fabric.run(Port(8080, "tcp", HOST[family]), Port(8080, "udp", HOST[family])).serve("web", 80)
    for protocol in ("tcp", "udp"):
        assert client.ask(HOST[family], 8080, protocol).server == "web"
        assert client.is_refused(HOST_SECONDARY[family], 8080, protocol)
        assert client.is_refused(HOST[10 - family], 8080, protocol)


@pytest.mark.parametrize(("wildcard", "family"), [("0.0.0.0", 4), ("::", 6)])
@pytest.mark.parametrize("dual", [False, True])
def test_wildcard(client: Namespace, fabric: Fabric, wildcard: str, family: int, dual: bool) -> None:  # noqa: FBT001
    """A port published on 0.0.0.0 or :: is open at every address of the family, also with dual stack."""
    fabric.run(Port(8080, host_ip=wildcard), families=(4, 6) if dual else (family,)).serve("web", 80)
    assert client.ask(HOST[family], 8080).server == "web"
    assert client.ask(HOST_SECONDARY[family], 8080).server == "web"


def test_localhost(host: Host, fabric: Fabric) -> None:
    """A port published on 127.0.0.1 is reached from the host, for TCP and UDP."""
    fabric.run(Port(8080, "tcp", "127.0.0.1"), Port(8080, "udp", "127.0.0.1")).serve("web", 80)
    assert host.ask("127.0.0.1", 8080, "tcp").server == "web"
    assert host.ask("127.0.0.1", 8080, "udp").server == "web"


def test_every_port_at_localhost(host: Host, fabric: Fabric) -> None:
    """A port published on all addresses is reached at 127.0.0.1 from the host."""
    fabric.run(Port(8080)).serve("web", 80)
    assert host.ask("127.0.0.1", 8080).server == "web"


@pytest.mark.parametrize("family", [4, 6])
def test_hairpin(host: Host, fabric: Fabric, family: int) -> None:
    """A container reaches its own published port where bridged packets do not pass iptables."""
    host.set_bridge_netfilter("0")
    container = fabric.run(Port(8080))
    container.serve("web", 80)
    assert container.ask(HOST[family], 8080).server == "web"


@pytest.mark.parametrize("family", [4, 6])
@differs(NETAVARK, "It leaves the bridge's hairpin mode off. With CNI it is the bridge plugin's `hairpinMode`.")
def test_hairpin_with_bridge_filter(host: Host, fabric: Fabric, family: int) -> None:
    """A container reaches its own published port where bridged packets pass iptables (br_netfilter)."""
    host.set_bridge_netfilter("1")
    container = fabric.run(Port(8080))
    container.serve("web", 80)
    assert container.ask(HOST[family], 8080, timeout=1).server == "web"


def test_neighbour(fabric: Fabric) -> None:
    """A container on the same network reaches the published port."""
    fabric.run(Port(8080)).serve("web", 80)
    assert fabric.run().ask(HOST[4], 8080).server == "web"


def test_two_networks(host: Host, client: Namespace, fabric: Fabric) -> None:
    """A container on two networks is reached with a strict reverse path filter."""
    for setting in ("all", "default"):
        host.set_sysctl(f"ipv4/conf/{setting}/rp_filter", "1")
    fabric.run(Port(8080), networks=("cni0", "cni1")).serve("web", 80)
    assert client.ask(HOST[4], 8080).server == "web"
    assert host.ask(HOST[4], 8080).server == "web"


def test_wrong_host_ip(fabric: Fabric) -> None:
    """A host address that is not an address is refused, and the error names it."""
    with pytest.raises(Refusal, match="abcd"):
        fabric.run(Port(8080, host_ip="abcd"))


def test_reload(host: Host, client: Namespace, fabric: Fabric) -> None:
    """After `nft flush ruleset`, a reload restores ports and outbound NAT: `firewall-reload`, `quantum-nat reconcile`."""
    client.serve("outside", 80)
    container = fabric.run(Port(8080))
    container.serve("web", 80)
    host.run("nft", "flush", "ruleset")
    assert client.is_refused(HOST[4], 8080)
    fabric.reload()
    assert client.ask(HOST[4], 8080).server == "web"
    assert container.ask(CLIENT[4], 80).source == HOST[4]


def test_stopped(client: Namespace, fabric: Fabric) -> None:
    """After stop, ports on two addresses and for two protocols are closed; another container's port stays open."""
    ports = [Port(8080, protocol, address) for protocol in ("tcp", "udp") for address in (HOST[4], HOST_SECONDARY[4])]
    stopped, kept = fabric.run(*ports), fabric.run(Port(8081))
    kept.serve("kept", 80)
    fabric.stop(stopped)
    for port in ports:
        assert client.is_refused(port.host_ip, 8080, port.protocol)
    assert client.ask(HOST[4], 8081).server == "kept"


def test_stopped_without_namespace(client: Namespace, fabric: Fabric) -> None:
    """If the namespace is already gone, stop closes the ports."""
    gone = fabric.run(Port(8080))
    fabric.stop_without_namespace(gone)
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.parametrize("family", [4, 6])
def test_outbound_address(client: Namespace, fabric: Fabric, family: int) -> None:
    """A container has a fixed source address: `outbound_addr4` and `outbound_addr6`, `snatAddress`."""
    client.serve("outside", 80)
    assert fabric.run(source=HOST_SECONDARY[family]).ask(CLIENT[family], 80).source == HOST_SECONDARY[family]


def test_isolation(client: Namespace, fabric: Fabric) -> None:
    """Networks are isolated from each other, and a port is reached from outside (ours: with the CNI plugin `firewall`)."""
    one, other = fabric.run(Port(8080)), fabric.run(networks=("cni1",))
    one.serve("web", 80)
    if isinstance(fabric, QuantumNat):
        assert other.ask(fabric.address(one), 80).server == "web", "the isolation must come from that plugin"
        for container in (one, other):
            fabric.isolate(container)
    assert other.cannot_reach(fabric.address(one), 80)
    assert client.ask(HOST[4], 8080).server == "web"


def test_other_network(fabric: Fabric) -> None:
    """A container on another network reaches the port at the host's address."""
    fabric.run(Port(8080)).serve("web", 80)
    assert fabric.run(networks=("cni1",)).ask(HOST[4], 8080).server == "web"


@differs(NETAVARK, "Both are set up; podman reserves the port instead.")
def test_conflict(fabric: Fabric) -> None:
    """A host port that another container uses is refused."""
    fabric.run(Port(8080))
    with pytest.raises(Refusal, match="8080"):
        fabric.run(Port(8080))
