"""DEL of a container that portmap or ipMasq served: their rules for it go, and nobody else's. conformance/peers has it with the real ones."""

from __future__ import annotations

from hashlib import sha512
from typing import TYPE_CHECKING

import pytest

from .plugin import Plugin, publish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .topology import Container, Host


def digest(text: str) -> str:
    return sha512(text.encode()).hexdigest()


def portmap_by_nftables(host: Host, container: Container) -> None:
    rule = f'tcp dport 8080 dnat to {container.address[4]}:80 comment "{container.id}"'
    host.run("nft", "add table ip cni_hostport; add chain ip cni_hostport hostports")
    host.run("nft", f"add rule ip cni_hostport hostports {rule}")


def ipmasq_by_nftables(host: Host, container: Container) -> None:
    comment = f"{digest('net')[:16]}-{digest(f'eth0:{container.id}')[:16]}, net: net, if: eth0, id: {container.id}"
    host.run("nft", "add table inet cni_plugins_masquerade; add chain inet cni_plugins_masquerade masq_checks")
    rule = f'ip saddr {container.address[4]} masquerade comment "{comment[:128]}"'
    host.run("nft", f"add rule inet cni_plugins_masquerade masq_checks {rule}")


def by_iptables(host: Host, container: Container) -> None:
    """As portmap and ipMasq do, without portmap's marks."""
    for prefix, chain, rule in (
        ("CNI-DN-", "PREROUTING", "-p tcp --dport 8080"),
        ("CNI-", "POSTROUTING", f"-s {container.address[4]}"),
    ):
        own = f"{prefix}{digest(f'net{container.id}')}"[:28]
        host.run("iptables", "-t", "nat", "-N", own)
        target = (
            f"-p tcp -j DNAT --to-destination {container.address[4]}:80" if chain == "PREROUTING" else "-j MASQUERADE"
        )
        host.run("iptables", "-t", "nat", "-A", own, *target.split())
        comment = f'name: "net" id: "{container.id}"'
        host.run("iptables", "-t", "nat", "-A", chain, *rule.split(), "-m", "comment", "--comment", comment, "-j", own)


@pytest.mark.parametrize(
    "leave", [portmap_by_nftables, ipmasq_by_nftables, by_iptables], ids=lambda leave: leave.__name__
)
def test_del_without_a_record_removes_what_they_left(
    host: Host,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    leave: Callable[[Host, Container], None],
) -> None:
    for one in (container, other_container):
        leave(host, one)
    assert container.address[4] in host.run("nft", "list ruleset")
    plugin.attachment(container).delete()
    left = host.run("nft", "list ruleset")
    assert container.address[4] not in left
    assert other_container.address[4] in left


def test_del_with_a_record_leaves_others_rules_alone(host: Host, container: Container, plugin: Plugin) -> None:
    """Whoever has a record was added by us: what is beside it, somebody else made."""
    web = plugin.add(container, publish(8080))
    portmap_by_nftables(host, container)
    web.delete()
    assert container.address[4] in host.run("nft", "list ruleset")


def test_what_iptables_cannot_tell_does_not_keep_the_rest(
    host: Host, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    for name in ("iptables-save", "ip6tables-save"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    by_iptables(host, container)
    portmap_by_nftables(host, container)
    plugin.programs = tmp_path
    plugin.attachment(container, backend="nftables").delete()
    assert container.address[4] not in host.run("nft", "list table ip cni_hostport")
