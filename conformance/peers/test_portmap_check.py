"""CHECK: whether it reports an attachment that is not, or no longer, as it was set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.plugin import PluginError
from tests.kernel.topology import HOST, Container, Host, Namespace

from .port_mapper import CHECKED_VERSIONS, PORTMAP_NFTABLES, PortMapper, differs, publish

if TYPE_CHECKING:
    from tests.kernel.plugin import Attachment

TABLE = "CHECK"


def fails(attachment: Attachment) -> bool:
    try:
        attachment.check()
    except PluginError:
        return True
    return False


def test_ok(container: Container, mapper: PortMapper) -> None:
    """It fails before ADD, succeeds after it, and fails after DEL."""
    for version in CHECKED_VERSIONS:
        web = mapper.attachment(container, publish(8080), publish(5353, protocol="udp"), cniVersion=version)
        assert fails(web), version
        web.add().check()
        web.delete()
        assert fails(web), version


def test_changed_snat(container: Container, mapper: PortMapper) -> None:
    """It fails if snat was off at ADD and is on now, until ADD is called again; and after DEL."""
    ports = (publish(8080), publish(8081, hostIP="0.0.0.0"), publish(8082, hostIP="::"))
    for version in CHECKED_VERSIONS:
        mapper.add(container, *ports, snat=False, cniVersion=version).check()
        now = mapper.attachment(container, *ports, snat=True, cniVersion=version)
        assert fails(now), version
        now.add().check()
        now.delete()
        assert fails(now), version


@differs(PORTMAP_NFTABLES, "It counts the container's rules, and does not compare them.")
def test_changed_port(container: Container, mapper: PortMapper) -> None:
    """It fails when a mapping now leads to another container port."""
    mapper.add(container, publish(8080, 80))
    assert fails(mapper.attachment(container, publish(8080, 81)))


def test_further_port(container: Container, mapper: PortMapper) -> None:
    """It fails when there is now one more mapping."""
    mapper.add(container, publish(8080))
    assert fails(mapper.attachment(container, publish(8080), publish(8081)))


def test_flushed(host: Host, client: Namespace, container: Container, mapper: PortMapper) -> None:
    """It fails after a flush of the ruleset, until ADD is called again."""
    web = mapper.add(container, publish(8080))
    host.run("nft", "flush", "ruleset")
    assert fails(web)
    web.add().check()
    assert client.ask(HOST[4], 8080).server == "web"


def test_no_previous_result(container: Container, mapper: PortMapper) -> None:
    """It fails without prevResult."""
    mapper.add(container, publish(8080))
    assert fails(mapper.attachment(container, publish(8080), prevResult=None))


def test_no_ports(container: Container, mapper: PortMapper) -> None:
    """It succeeds for a container without port mappings."""
    mapper.add(container).check()
