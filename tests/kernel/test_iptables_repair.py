"""The iptables backend with flushed tables, lost records, other programs' chains, and ports of dead containers."""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from .peer import Refused
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, Container, Host, Namespace

both_variants = pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"], indirect=True)
nft_variant = pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")


def iptables(host: Host, *words: str) -> None:
    """Run iptables and ip6tables in the variant of the test."""
    for prefix in ("iptables", "ip6tables"):
        host.run(f"{prefix}-{host.backend.removeprefix('iptables-')}", *words)


def make_mark_chain(host: Host) -> None:
    """Make kube-proxy's chain that marks packets, and its rule that masquerades them."""
    iptables(host, "-t", "nat", "-N", "MARK-MASQ")
    iptables(host, "-t", "nat", "-A", "MARK-MASQ", "-j", "MARK", "--or-mark", "0x4000")
    iptables(host, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")


@both_variants
def test_after_a_flush_that_keeps_the_chains_the_next_add_restores_everything(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    client.serve("outside", 80)
    web = plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1"))
    before = sorted(host.iptables_rules())
    for table in ("nat", "raw", "filter"):
        iptables(host, "-t", table, "-F")
    other = plugin.add(other_container, publish(9000))
    web.check()
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert container.ask(CLIENT[family], 80).source == HOST[family]
    other.delete()
    assert sorted(host.iptables_rules()) == before


@pytest.mark.parametrize("backend", ["iptables-legacy"], indirect=True)
def test_a_call_does_not_wait_for_the_lock_of_iptables_for_ever(container: Container, plugin: Plugin) -> None:
    """Another program that hangs would keep every call waiting: the plugin holds its own lock meanwhile."""
    web = plugin.attachment(container, publish(8080))
    with Path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(PluginError, match="another program has held the lock of iptables for 30 seconds") as caught:
            web.add()
        assert caught.value.code == 11
        assert 30 <= time.monotonic() - began < 55
    web.add()
    web.check()


@both_variants
def test_if_only_one_containers_rules_are_missing_no_others_are_restored(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """iptables-save's output is compared with our rules word by word: a variant with other output would cost time."""
    web = plugin.add(container, publish(8080))
    kept = plugin.add(other_container, publish(9000))
    (plugin.state_directory / "rebuilt").unlink()
    before = sorted(host.iptables_rules())
    iptables(host, "-t", "nat", "-D", "QUANTUM-INBOUND", "1")
    iptables(host, "-t", "nat", "-D", "QUANTUM-ANY-IP", "1")
    web.add().check()
    kept.add().check()
    assert sorted(host.iptables_rules()) == before
    assert not (plugin.state_directory / "rebuilt").exists()


@both_variants
@pytest.mark.parametrize("orphan", [False, True])
def test_a_missing_chain_is_restored_without_duplicate_rules(
    host: Host, container: Container, other_container: Container, plugin: Plugin, orphan: bool
) -> None:
    web = plugin.add(container, publish(8080))
    other = plugin.add(other_container, publish(9000))
    if orphan:
        shutil.rmtree(plugin.state_directory / "attachments" / other_container.id)
    iptables(host, "-t", "nat", "-D", "OUTPUT", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "QUANTUM-OUTPUT")
    iptables(host, "-t", "nat", "-F", "QUANTUM-OUTPUT")
    iptables(host, "-t", "nat", "-X", "QUANTUM-OUTPUT")
    third = plugin.add(host.container("cni1"), publish(9001), network="third")
    web.check()
    third.check()
    rules = [line for line in host.iptables_rules() if "--dport" in line]
    assert len(rules) == len(set(rules)) == 6
    other.delete()
    web.delete()
    third.delete()
    assert host.installed() == set()


@both_variants
def test_a_port_taken_over_from_a_dead_container_stays_with_its_new_owner_after_a_flush(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("successor", 80)
    plugin.add(container, publish(8080))
    container.remove()
    successor = plugin.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "successor"
    for option in ("-F", "-X"):
        iptables(host, "-t", "nat", option)
    plugin.add(host.container("cni1"), network="other")
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "successor"
    successor.check()


@both_variants
def test_a_missing_external_chain_of_one_network_does_not_prevent_repair_of_others(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    make_mark_chain(host)
    marked = plugin.add(other_container, publish(9000), network="marked", externalSetMarkChain="MARK-MASQ")
    web = plugin.add(container, publish(8080))
    for option in ("-F", "-X"):
        iptables(host, "-t", "nat", option)
    newcomer = plugin.add(host.container("cni1"), publish(9001), network="other")
    for attachment in (web, newcomer):
        attachment.check()
    assert client.ask(HOST[4], 8080).server == "web"
    with pytest.raises(PluginError, match="MARK-MASQ"):
        marked.check()
    make_mark_chain(host)
    marked.add().check()


@both_variants
@pytest.mark.parametrize("keys", [{}, {"markMasqBit": 5}])
def test_address_conditions_work_with_marks_and_host_addresses(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    keys: dict[str, Any],
) -> None:
    client.ip("address add 198.51.100.77/24 dev uplink")
    conditions = ["!", "-s", "198.51.100.77", "!", "-d", "203.0.113.0/24", "-m", "comment", "--comment", "x/y/z"]
    web = plugin.add(container, publish(8080, hostIP=HOST[4]), publish(8081), conditionsV4=conditions, **keys)
    for port in (8080, 8081):
        assert client.ask(HOST[4], port, source=CLIENT[4]) == ("web", CLIENT[4])
        assert other_container.ask(HOST[4], port) == ("web", "10.88.0.1")
        assert host.ask(HOST[4], port).server == "web"
        with pytest.raises(Refused):
            client.ask(HOST[4], port, source="198.51.100.77")
    assert client.ask(HOST[6], 8081).server == "web"
    web.check()
    iptables(host, "-t", "nat", "-F", "QUANTUM-INBOUND")
    web.delete()
    assert host.installed() == set()


@nft_variant
def test_a_port_of_a_dead_container_with_the_other_backend_is_taken_over(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    for number, (dead, successor) in enumerate((("nftables", "iptables"), ("iptables", "nftables"))):
        port, old = 8080 + number, host.container()
        attachment = plugin.add(old, publish(port), network=f"{dead}-net", backend=dead)
        old.remove()
        young = container if number else other_container
        young.serve(f"successor{number}", 81)
        made = plugin.add(young, publish(port, 81), network=f"{successor}-net", backend=successor)
        for _ in range(2):
            for family in (4, 6):
                assert client.ask(HOST[family], port).server == f"successor{number}"
            attachment.delete()
        made.check()


@both_variants
def test_status_without_cap_net_admin_is_not_available(container: Container, plugin: Plugin) -> None:
    for _ in range(2):
        with pytest.raises(PluginError, match="iptables") as caught:
            plugin.status(*WITHOUT_RIGHTS)
        assert caught.value.code == 50
        plugin.add(container)


@both_variants
def test_an_add_refused_by_the_kernel_leaves_neither_record_nor_rule(
    host: Host, container: Container, plugin: Plugin
) -> None:
    request = plugin.attachment(container, publish(8080), ipForwarding=False).configuration
    with pytest.raises(PluginError, match="iptables") as caught:
        plugin.call("ADD", request, container, before=WITHOUT_RIGHTS)
    assert caught.value.code in (50, 101)
    assert host.installed() == set()
    assert not list(plugin.state_directory.glob("attachments/*"))


@nft_variant
def test_add_and_status_report_that_iptables_is_not_installed(container: Container, plugin: Plugin) -> None:
    hide = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", hide, "sh")
    plugin.programs = None
    configuration = plugin.attachment(container, publish(8080), backend="iptables").configuration
    for verb in ("STATUS", "ADD"):
        with pytest.raises(PluginError, match=r"there is no ip6?tables-(restore|save)") as caught:
            plugin.call(verb, configuration, container, before=before)
        assert caught.value.code == 50
        assert "Install iptables" in caught.value.details
    assert not list(plugin.state_directory.glob("attachments/*"))


@both_variants
def test_a_refused_second_add_leaves_every_rule_unchanged(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1"))
    before = sorted(host.iptables_rules())
    again = plugin.attachment(container, publish(8082), externalSetMarkChain="NO-SUCH-CHAIN")
    again.configuration["prevResult"]["ips"] = again.configuration["prevResult"]["ips"][:1]
    with pytest.raises(PluginError, match="NO-SUCH-CHAIN"):
        again.add()
    assert sorted(host.iptables_rules()) == before
    assert client.ask(HOST[6], 8080).server == "web"
    web.check()


@both_variants
def test_foreign_rules_that_are_hard_to_parse_are_tolerated(host: Host, container: Container, plugin: Plugin) -> None:
    host.run(host.backend, "-A", "INPUT", "-i", "it's", "-m", "comment", "--comment", 'don\'t "do" it', "-j", "ACCEPT")
    host.run(host.backend, "-A", "FORWARD", "-m", "comment", "--comment", "isn't QUANTUM-FORWARD", "-j", "ACCEPT")
    host.ip("link set cni0 down", "link set cni0 name it's'0", "link set it's'0 up")
    plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1")).check()
    iptables(host, "-t", "nat", "-F")
    web = plugin.add(container, publish(8080), publish(8081, hostIP="127.0.0.1"))
    web.check()
    web.delete()
    assert not [line for line in host.iptables_rules() if line.startswith("-A QUANTUM-") and "--comment" in line]
    assert len(host.run(f"{host.backend}-save", "-t", "filter").split("-j ACCEPT")) == 3


@pytest.mark.frozen
@nft_variant
@pytest.mark.parametrize("libraries", [None, "/opt/lib"])
def test_host_programs_run_with_host_libraries(
    container: Container, plugin: Plugin, tmp_path: Path, libraries: str | None
) -> None:
    seen, wrapped = tmp_path / "seen", tmp_path / "wrapped"
    wrapped.mkdir()
    for program in ("iptables-restore", "ip6tables-restore"):
        real = f"/usr/sbin/{program.replace('tables-', 'tables-nft-')}"
        (wrapped / program).write_text(f'#!/bin/sh\necho "${{LD_LIBRARY_PATH-unset}}" >> {seen}\nexec {real} "$@"\n')
        (wrapped / program).chmod(0o755)
    plugin.programs = wrapped
    environment: dict[str, Any] = {} if libraries is None else {"LD_LIBRARY_PATH": libraries}
    plugin.call("ADD", plugin.attachment(container, publish(8080)).configuration, container, **environment)
    assert set(seen.read_text().split()) == {libraries or "unset"}


@both_variants
def test_two_state_directories_leave_each_others_rules_alone(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    """At 1.0.0 (defect 27) the cure that doctor gave for one of them, `reconcile`, deleted the rules of the other's containers."""
    second = Plugin(host, tmp_path / "second", plugin.programs)
    other_container.serve("other", 80)
    web = plugin.add(container, publish(8080))
    other = second.add(other_container, publish(8081))
    assert [one.operate("reconcile", "--dry-run").returncode for one in (plugin, second)] == [0, 0]
    iptables(host, "-t", "nat", "-F", "QUANTUM-ANY-IP")
    assert [one.operate("reconcile").returncode for one in (plugin, second, plugin)] == [0, 0, 0]
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert client.ask(HOST[family], 8081).server == "other"
    second.gc({"cni.dev/valid-attachments": []})
    assert host.owners() == {web.owner}
    web.check()
    with pytest.raises(PluginError, match="which another state directory has on record"):
        second.add(other_container, publish(8080))
    assert other.owner not in host.owners()


@nft_variant
def test_rules_that_name_no_state_directory_get_its_name_with_the_next_add(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """1.0.0 wrote none: rules of a container on record here are this directory's."""
    web = plugin.add(container, publish(8080))
    for prefix in ("iptables", "ip6tables"):
        saved = host.run(f"{prefix}-save")
        host.run(f"{prefix}-restore", stdin=re.sub(r":[0-9a-f]{4}(?=[ \"])", "", saved))
    assert f"{web.owner}:" not in "\n".join(host.iptables_rules())
    plugin.add(other_container, publish(8081))
    web.check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert all(f"{web.owner}:" in line for line in host.iptables_rules() if web.owner in line)
    web.delete()
    assert web.owner not in host.owners()
    assert client.is_refused(HOST[4], 8080)


@nft_variant
@pytest.mark.parametrize("keys", [{"isolate": True}, {}])
def test_the_containers_own_interface_is_no_wildcard(
    host: Host, container: Container, other_container: Container, plugin: Plugin, keys: dict[str, Any]
) -> None:
    """At 1.0.0 (defect 38) every interface whose name begins alike was the container's own network: "cni+" is cni1 too."""
    host.ip("link set cni0 down", "link set cni0 name cni+", "link set cni+ up")
    ports = [publish(8080)] if keys else [publish(8080, hostIP="127.0.0.1")]
    with pytest.raises(PluginError, match=r"interface 'cni\+'.*wildcard") as caught:
        plugin.add(container, *ports, **keys)
    assert caught.value.code == 7
    assert host.installed() == set()
    plugin.add(other_container, publish(8080))
