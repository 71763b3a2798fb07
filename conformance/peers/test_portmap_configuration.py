"""The configurations that portmap accepts and refuses, and the addresses of prevResult that it publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.plugin import PluginError
from tests.kernel.topology import CLIENT, HOST, Container, Host, Namespace

from .port_mapper import (
    PORTMAP,
    PORTMAP_IPTABLES,
    QUANTUM_NAT,
    UNNAMED_BACKEND,
    VERSIONS,
    PortMapper,
    differs,
    previous_result,
    publish,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = "Configuration, as portmap accepts and refuses it"


def refusal(mapper: PortMapper, container: Container, *ports: dict[str, Any], **keys: Any) -> str:
    """Call ADD, which must fail, and return its error."""
    with pytest.raises(PluginError) as caught:
        mapper.add(container, *(ports or (publish(8080),)), **keys)
    return f"{caught.value.message} {caught.value.details}"


def test_address(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """Of several addresses in prevResult, those of the container's interface are published, one for each family."""
    for version in VERSIONS:
        result = previous_result(container, version)
        bridge: dict[str, Any] = {"address": "10.88.0.1/24", "interface": 0}
        further: dict[str, Any] = {"address": "10.88.0.99/24", "interface": 1}
        if version.startswith("0."):
            bridge["version"] = further["version"] = "4"
        result["ips"] = [bridge, *result["ips"], further]
        web = mapper.add(container, publish(8080), cniVersion=version, prevResult=result)
        for family in (4, 6):
            assert client.ask(HOST[family], 8080).server == "web", version
        web.delete()


@pytest.mark.parametrize("ports", [(), (publish(8080),)])
def test_pass_through(container: Container, mapper: PortMapper, ports: tuple[dict[str, Any], ...]) -> None:
    """prevResult is passed on unchanged, with and without port mappings."""
    for version in VERSIONS:
        expected = previous_result(container, version)
        web = mapper.add(container, *ports, cniVersion=version)
        for key in ("cniVersion", "interfaces", "ips"):
            assert web.result[key] == expected[key], version
        web.delete()


def test_del_with_nothing(container: Container, mapper: PortMapper) -> None:
    """DEL succeeds without runtimeConfig and without prevResult."""
    for version in VERSIONS:
        mapper.attachment(container, cniVersion=version, prevResult=None).delete()


def test_host_port_0(container: Container, mapper: PortMapper) -> None:
    """hostPort 0 is refused."""
    for version in VERSIONS:
        assert "0" in refusal(mapper, container, publish(0), cniVersion=version)


@pytest.mark.parametrize(("host_port", "container_port"), [(-1, 80), (8080, 0), (8080, -1)])
def test_other_ports_below_1(container: Container, mapper: PortMapper, host_port: int, container_port: int) -> None:
    """A negative hostPort and a containerPort below 1 are refused."""
    refusal(mapper, container, publish(host_port, container_port))


@differs(PORTMAP_IPTABLES, "It fails halfway, and leaves chains behind.")
def test_ports_above_65535(host: Host, container: Container, mapper: PortMapper) -> None:
    """A port above 65535 is refused, and nothing changes."""
    before = rules_of(host)
    refusal(mapper, container, publish(65536))
    assert rules_of(host) == before


def rules_of(host: Host) -> str:
    """Return all rules, without counters."""
    return host.run("nft", "--stateless", "list", "ruleset")


@pytest.mark.parametrize("subject", UNNAMED_BACKEND)
def test_no_backend(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A configuration without `backend` works."""
    for version in VERSIONS:
        web = mapper.add(container, publish(8080), backend=None, cniVersion=version)
        assert client.ask(HOST[4], 8080).server == "web", version
        web.delete()


@pytest.mark.parametrize("subject", UNNAMED_BACKEND)
@differs(
    QUANTUM_NAT,
    'Without `backend`, the default is nftables (portmap: iptables). The error says so; add `"backend": "iptables"`, or write '
    "the conditions for nftables.",
    raises=PluginError,
)
def test_iptables_conditions_without_backend(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """Conditions for iptables in a configuration without `backend` are accepted."""
    mapper.add(container, publish(8080), backend=None, conditionsV4=["-s", CLIENT[4]])
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.parametrize("key", ["conditionsV4", "conditionsV6"])
def test_conditions_for_the_other_backend(container: Container, mapper: PortMapper, key: str) -> None:
    """Conditions in the other backend's syntax are refused, and the error names the key."""
    foreign = ["ip", "saddr", "192.0.2.1"] if mapper.backend == "iptables" else ["-s", "192.0.2.1"]
    assert key in refusal(mapper, container, **{key: foreign})


def test_external_mark_chain(container: Container, mapper: PortMapper) -> None:
    """externalSetMarkChain is refused with nftables, and together with markMasqBit, and the error names it."""
    keys: dict[str, Any] = {"externalSetMarkChain": "KUBE-MARK-MASQ"}
    if mapper.backend == "iptables":
        keys["markMasqBit"] = 5
    assert "externalSetMarkChain" in refusal(mapper, container, **keys)


def test_mark_bit(host: Host, container: Container, mapper: PortMapper) -> None:
    """Both backends accept markMasqBit from 0 to 31, and refuse other values."""
    for wrong in (-1, 32):
        assert "0" in refusal(mapper, container, markMasqBit=wrong)
    mapper.add(container, publish(8080), markMasqBit=31)
    assert host.ask("127.0.0.1", 8080).server == "web"


def test_backend(container: Container, mapper: PortMapper) -> None:
    """An unknown backend is refused, and the error names it."""
    assert "ebtables" in refusal(mapper, container, backend="ebtables")


def test_no_previous_result(container: Container, mapper: PortMapper) -> None:
    """ADD without prevResult is refused."""
    refusal(mapper, container, prevResult=None)


def without_index(result: dict[str, Any]) -> None:
    """Do as plugins that name no interface for an address."""
    result["interfaces"] = [{"name": "host"}]
    for ip in result["ips"]:
        del ip["interface"]


def index_out_of_range(result: dict[str, Any]) -> None:
    for ip in result["ips"]:
        ip["interface"] = 7


@pytest.mark.parametrize("damage", [without_index, index_out_of_range])
def test_missing_interface(
    client: Namespace, container: Container, mapper: PortMapper, damage: Callable[[dict[str, Any]], None]
) -> None:
    """An address whose interface is missing in prevResult, or out of range, is published anyway."""
    for version in VERSIONS:
        result = previous_result(container, version)
        damage(result)
        web = mapper.add(container, publish(8080), cniVersion=version, prevResult=result)
        assert client.ask(HOST[4], 8080).server == "web", version
        web.delete()


def test_case_of_keys(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """The case of a mapping's keys is ignored: containerd writes HostPort, podman hostport."""
    containerd = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}
    podman = {"hostport": 8081, "containerport": 80, "protocol": "tcp"}
    mapper.add(container, containerd, podman)
    for port in (8080, 8081):
        assert client.ask(HOST[4], port).server == "web"


@differs(PORTMAP, "Neither backend has a default, and ADD fails.", raises=PluginError)
def test_no_protocol(client: Namespace, container: Container, mapper: PortMapper) -> None:
    """A mapping without a protocol is for TCP."""
    mapper.add(container, {"hostPort": 8080, "containerPort": 80})
    assert client.ask(HOST[4], 8080).server == "web"


@differs(PORTMAP, "It is treated as an IPv6 address: ADD succeeds, and nothing is published on IPv4.")
def test_wrong_host_ip(container: Container, mapper: PortMapper) -> None:
    """A hostIP that is not an address is refused, and the error names it."""
    assert "abcd" in refusal(mapper, container.host.container(families=(4,)), publish(8080, hostIP="abcd"))


@differs(PORTMAP, "Both become rules, and the second never matches.")
def test_same_port_twice(container: Container, mapper: PortMapper) -> None:
    """One host port for two container ports in one request is refused."""
    assert "8080" in refusal(mapper, container, publish(8080, 80), publish(8080, 81))
