"""Users' bug reports about port mappings; some more are named in the other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.kernel.plugin import PluginError
from tests.kernel.talk import Talk
from tests.kernel.topology import HOST, HOST_SECONDARY, Container, Host, Namespace, keep_conntrack_enabled

from .port_mapper import PORTMAP, PortMapper, differs, publish

if TYPE_CHECKING:
    from contextlib import ExitStack

TABLE = "Problems that users reported"
VALID = "cni.dev/valid-attachments"


def test_moby_53384_flows_of_another(
    stack: ExitStack,
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    mapper: PortMapper,
) -> None:
    """DEL keeps the UDP connections of another container with the same port on another address (moby#53384)."""
    keep_conntrack_enabled(host)
    other_container.serve("other", 80)
    web = mapper.add(container, publish(5353, protocol="udp", hostIP=HOST[4]))
    mapper.add(other_container, publish(5353, protocol="udp", hostIP=HOST_SECONDARY[4]))
    talk = Talk(stack, client, HOST_SECONDARY[4], 5353)
    assert talk.ask() == "other"
    before = _flow(host, talk.port)
    web.delete()
    assert _flow(host, talk.port) == before
    assert talk.ask() == "other"


def _flow(host: Host, client_port: int) -> str:
    """Return the ID of the conntrack entry of a client's connection."""
    listed = host.run("conntrack", "-L", "-p", "udp", "-o", "id")
    return next(line.rpartition("id=")[2] for line in listed.splitlines() if f"sport={client_port} " in line)


@differs(PORTMAP, "The dead container's rule stays, and takes precedence.")
def test_podman_27516_stale_mapping(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """A container gets the port of one that was killed and never removed (podman#27516, netavark#1160)."""
    other_container.serve("other", 80)
    mapper.add(container, publish(8080))
    container.remove()
    mapper.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080, timeout=1).server == "other"


@differs(PORTMAP, "GC does nothing in v1.9.1.", raises=(AssertionError, PluginError))
def test_multus_1254_gc(
    client: Namespace, container: Container, other_container: Container, mapper: PortMapper
) -> None:
    """GC removes only attachments that the runtime does not list (multus#1254, cri-o#8018)."""
    other_container.serve("other", 80)
    mapper.add(container, publish(8080), cniVersion="1.1.0")
    mapper.add(other_container, publish(8081), cniVersion="1.1.0")
    valid: dict[str, Any] = {VALID: [{"containerID": other_container.id, "ifname": other_container.interface}]}
    mapper.call("GC", mapper.configuration(cniVersion="1.1.0", **valid))
    assert client.is_refused(HOST[4], 8080)
    assert client.ask(HOST[4], 8081).server == "other"


@differs(PORTMAP, "It translates ::1 too, which the kernel cannot route: connections time out.")
def test_kubernetes_90236_ipv6_localhost(host: Host, container: Container, mapper: PortMapper) -> None:
    """[::1] is refused at once, so that a client of `localhost` falls back to 127.0.0.1 (kubernetes#90236, podman#12690)."""
    mapper.add(container, publish(8080))
    assert host.is_refused("::1", 8080)
    assert host.ask("127.0.0.1", 8080).server == "web"


@differs(PORTMAP, "A port mapping without hostPort is refused.", raises=PluginError)
def test_plugins_49_allocation(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A mapping without hostPort gets a free port from the range (plugins#49, kubernetes#130460)."""
    mapper.add(container, {"containerPort": 80, "protocol": "tcp"}, portRange="40000-40000")
    assert client.ask(HOST[4], 40000).server == "web"


def test_containerd_4321_sctp(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """SCTP ports are published (containerd#4321)."""
    mapper.add(container, publish(8080, protocol="sctp"))
    assert client.ask(HOST[4], 8080, "sctp").server == "web"
