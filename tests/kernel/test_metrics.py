"""`quantum-nat metrics`: counts of real calls and packets, which never decrease."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat import NatConfig, NatManager, Network
from prometheus_client.parser import text_string_to_metric_families

from .peer import inside
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, HOST_SECONDARY, SUBNETS, Container, Host, Namespace
from .unprivileged import unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKEND = {"nftables": "nftables", "iptables-nft": "iptables", "iptables-legacy": "iptables"}


class Exposition:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def connections(self, kind: str, **labels: str) -> float:
        return self.sum("nat_connections_total", type=kind, **labels)

    def has(self, name: str, **labels: str) -> bool:
        return any(s.name == name and labels.items() <= s.labels.items() for s in self.samples)


def run_metrics(plugin: Plugin, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(plugin, *arguments), capture_output=True, text=True, check=False, env=plugin.environ)


def command(plugin: Plugin, *arguments: str) -> list[str]:
    line = ["nsenter", f"--net={plugin.host.path}", "--", *plugin.command, "--state-dir", str(plugin.state_directory)]
    return [*line, "metrics", *arguments]


def scrape(plugin: Plugin) -> Exposition:
    done = run_metrics(plugin)
    assert (done.returncode, done.stderr) == (0, "")
    return Exposition(done.stdout)


@pytest.mark.frozen
@pytest.mark.behaviour
def test_rules_and_calls_are_counted_from_add_to_del(plugin: Plugin, container: Container, backend: str) -> None:
    where = {"network": "net", "backend": BACKEND[backend]}
    assert "there is no state directory" in run_metrics(plugin).stderr
    plugin.state_directory.mkdir(mode=0o700)
    (plugin.state_directory / "lock").touch(0o600)
    assert scrape(plugin).samples == scrape(plugin).samples
    assert not scrape(plugin).has("nat_operations_total")
    web = plugin.add(container, publish(8080), publish(8081, hostIP=HOST[4]))
    present = scrape(plugin)
    assert present.sum("nat_port_mappings_total", **where) == 2
    assert present.sum("nat_rules_total", type="dnat", **where) == 3  # 8080 for both families, 8081 for one
    assert present.sum("nat_rules_total", type="masquerade", **where) == 2
    web.check()
    web.delete()
    web.delete_again_like_containerd()
    plugin.gc()
    plugin.status()
    after = scrape(plugin)
    assert after.sum("nat_port_mappings_total") == after.sum("nat_rules_total") == 0
    counts = {
        verb: after.sum("nat_operations_total", operation=verb, **where) for verb in ("ADD", "CHECK", "GC", "STATUS")
    }
    assert counts == dict.fromkeys(counts, 1)
    assert after.sum("nat_operations_total", operation="DEL", **where) == 2
    assert not after.has("nat_operation_errors_total")


@pytest.mark.behaviour
def test_durations_are_a_histogram_of_all_calls(
    plugin: Plugin, container: Container, other_container: Container
) -> None:
    for namespace in (container, other_container):
        plugin.add(namespace)
    seen = scrape(plugin)
    where = {"operation": "ADD", "network": "net"}
    assert seen.sum("nat_operation_duration_seconds_count", **where) == 2
    assert seen.sum("nat_operation_duration_seconds_bucket", le="10.0", **where) == 2
    assert seen.sum("nat_operation_duration_seconds_bucket", le="+Inf", **where) == 2
    assert 0 < seen.sum("nat_operation_duration_seconds_sum", **where) < 20


@pytest.mark.frozen
@pytest.mark.behaviour
def test_a_failed_call_is_counted_by_its_error_code(
    plugin: Plugin, container: Container, other_container: Container, backend: str
) -> None:
    plugin.add(container, publish(8080))
    for _ in range(2):
        with pytest.raises(PluginError, match="8080/tcp is already in use"):
            plugin.add(other_container, publish(8080))
    with pytest.raises(PluginError, match="masquerade"):
        plugin.add(other_container, masquerade="sometimes")
    with pytest.raises(PluginError, match="no such network namespace"):
        plugin.call(
            "ADD", plugin.attachment(other_container).configuration, other_container, CNI_NETNS="/run/netns/nobody"
        )
    seen = scrape(plugin)
    where = {"operation": "ADD", "network": "net", "backend": BACKEND[backend]}
    assert seen.sum("nat_operations_total", **where) == 5
    errors = {code: seen.sum("nat_operation_errors_total", code=code, **where) for code in ("100", "7", "4")}
    assert errors == {"100": 2, "7": 1, "4": 1}
    assert seen.sum("nat_operation_errors_total") == 4


@pytest.mark.frozen
@pytest.mark.behaviour
def test_connections_are_counted_by_type_and_the_count_outlives_the_container(
    plugin: Plugin, client: Namespace, container: Container, other_container: Container
) -> None:
    client.serve("outside", 90)
    web = plugin.add(container, publish(8080))
    fixed = plugin.add(other_container, network="fixed", snatAddress=HOST_SECONDARY[4])
    for family in (4, 6):
        client.ask(HOST[family], 8080)
    container.ask(CLIENT[4], 90, "udp")
    container.ask(CLIENT[6], 90)
    other_container.ask(CLIENT[4], 90)
    totals = scrape(plugin)
    assert totals.connections("dnat", network="net") == 2
    assert totals.connections("masquerade", network="net") == 2
    assert totals.connections("snat", network="fixed") == 1
    assert totals.connections("dnat", network="fixed") == totals.connections("snat", network="net") == 0
    web.delete()
    fixed.delete()
    assert kept(scrape(plugin)) == kept(totals)
    assert kept(scrape(plugin)) == kept(totals)


def kept(seen: Exposition) -> dict[tuple[str, str], float]:
    """Return the totals by network and type."""
    found = [s for s in seen.samples if s.name == "nat_connections_total"]
    return {(s.labels["network"], s.labels["type"]): s.value for s in found}


@pytest.mark.frozen
def test_del_counts_connections_since_the_last_scrape(
    plugin: Plugin, client: Namespace, container: Container, other_container: Container
) -> None:
    """A container that takes over an address or port starts its count at 0."""
    web, other = plugin.add(container, publish(8080)), plugin.add(other_container, publish(8081))
    client.ask(HOST[4], 8080)
    assert scrape(plugin).connections("dnat") == 1
    client.ask(HOST[4], 8080)
    web.add()
    client.ask(HOST[4], 8080)
    web.delete()
    assert scrape(plugin).connections("dnat") == 3
    assert client.is_refused(HOST[4], 8080)
    other.delete()
    assert scrape(plugin).connections("dnat") == 3


@pytest.mark.frozen
@pytest.mark.behaviour
def test_a_flushed_ruleset_does_not_decrease_counts(
    plugin: Plugin, host: Host, client: Namespace, container: Container, other_container: Container, backend: str
) -> None:
    plugin.add(container, publish(8080))
    client.ask(HOST[4], 8080)
    client.ask(HOST[6], 8080)
    assert scrape(plugin).connections("dnat") == 2
    flush(host, backend)
    assert scrape(plugin).connections("dnat") == 2
    plugin.add(other_container)
    assert scrape(plugin).connections("dnat") == 2
    client.ask(HOST[4], 8080)
    assert scrape(plugin).connections("dnat") == 3


def flush(host: Host, backend: str) -> None:
    if backend != "iptables-legacy":
        host.run("nft", "flush", "ruleset")
        return
    for prefix in ("iptables", "ip6tables"):
        for action in ("-F", "-X"):
            host.run(f"{prefix}-legacy", "-t", "nat", action)


def test_a_rebuild_counts_connections_of_a_damaged_table(
    plugin: Plugin, host: Host, client: Namespace, container: Container, other_container: Container
) -> None:
    """No scrape has seen it: it is read before the table is replaced."""
    plugin.add(container, publish(8080))
    client.ask(HOST[4], 8080)
    host.disable_guard()
    plugin.add(other_container)
    assert scrape(plugin).connections("dnat") == 1


@pytest.mark.frozen
def test_gc_and_takeovers_count_connections(
    plugin: Plugin, host: Host, client: Namespace, container: Container
) -> None:
    plugin.add(container, publish(8080))
    client.ask(HOST[4], 8080)
    container.remove()
    successor = host.container()
    successor.serve("successor", 80)
    plugin.add(successor, publish(8080), network="second")
    assert scrape(plugin).connections("dnat", network="net") == 1
    client.ask(HOST[4], 8080)
    plugin.gc({"cni.dev/valid-attachments": []})
    assert scrape(plugin).connections("dnat", network="second") == 1
    assert scrape(plugin).connections("dnat", network="net") == 1


def test_shared_ports_keep_counts_when_they_are_redistributed(
    plugin: Plugin, host: Host, client: Namespace, container: Container
) -> None:
    plugin.add(container, publish(8080), sharedPorts=[8080])
    for _ in range(3):
        client.ask(HOST[4], 8080)
    for _ in range(2):
        other = host.container()
        other.serve("other", 80)
        attachment = plugin.add(other, publish(8080), sharedPorts=[8080])
        client.ask(HOST[4], 8080)
        attachment.delete()
    assert scrape(plugin).connections("dnat") == 5


@pytest.mark.behaviour
def test_the_python_api_counts_as_its_own_network(
    plugin: Plugin, host: Host, client: Namespace, container: Container, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PATH", plugin.environ["PATH"])
    client.serve("outside", 90)
    config = NatConfig.model_validate({"state_dir": str(plugin.state_directory), "backend": BACKEND[backend]})
    network = Network("fabric0", "fabric0", SUBNETS["cni0"][4])
    with inside(host.path):
        manager = NatManager(config)
        manager.enable_outbound_connectivity(network)
        web = manager.create_port_mapping("web", container.address[4], 80, 8080)
        with pytest.raises(Exception, match="8080"):
            manager.create_port_mapping("other", "10.88.0.99", 80, 8080)  # the same address would be taken over
    client.ask(HOST[4], 8080)
    container.ask(CLIENT[4], 90)
    where = {"network": "python-api", "backend": BACKEND[backend]}
    seen = scrape(plugin)
    assert seen.sum("nat_rules_total", **where) == 2
    assert seen.sum("nat_operations_total", operation="ADD", **where) == 3
    assert seen.sum("nat_operation_errors_total", operation="ADD", code="100", **where) == 1
    assert (seen.connections("dnat", **where), seen.connections("masquerade", **where)) == (1, 1)
    with inside(host.path):
        manager.remove_port_mapping(web)
        manager.disable_outbound_connectivity(network)
    after = scrape(plugin)
    assert after.sum("nat_operations_total", operation="DEL", **where) == 2
    assert kept(after) == kept(seen)


def test_a_network_with_metrics_off_has_rules_but_no_counts(
    plugin: Plugin, client: Namespace, container: Container, other_container: Container
) -> None:
    quiet = plugin.add(container, publish(8080), network="quiet", metrics=False)
    plugin.add(other_container)
    client.ask(HOST[4], 8080)
    seen = scrape(plugin)
    assert seen.sum("nat_port_mappings_total", network="quiet") == 1
    quiet.delete()
    for name in ("nat_operations_total", "nat_connections_total"):
        assert not scrape(plugin).has(name, network="quiet")
        assert scrape(plugin).has(name, network="net")
    with pytest.raises(PluginError, match="metrics is 'yes': it must be true or false"):
        plugin.add(container, metrics="yes")


def test_conntrack_usage_matches_the_kernel(
    plugin: Plugin, host: Host, client: Namespace, container: Container
) -> None:
    plugin.add(container, publish(8080))
    client.ask(HOST[4], 8080)
    seen = scrape(plugin)
    assert seen.sum("nat_conntrack_entries_limit") == int(host.sysctl("netfilter/nf_conntrack_max"))
    assert seen.sum("nat_conntrack_entries") == int(host.sysctl("netfilter/nf_conntrack_count")) > 0


def test_a_lost_table_and_its_rebuild_are_seen(plugin: Plugin, host: Host, container: Container) -> None:
    plugin.add(container, publish(8080))
    assert Exposition(run_metrics(plugin).stdout).sum("nat_table_present") == 1
    host.run("nft", "delete", "table", "inet", "quantum")
    before = time.time()
    assert Exposition(run_metrics(plugin).stdout).sum("nat_table_present") == 0
    assert plugin.operate("reconcile").returncode == 0
    seen = Exposition(run_metrics(plugin).stdout)
    assert seen.sum("nat_table_present") == 1
    assert before - 1 < seen.sum("nat_last_rebuild_timestamp_seconds") < time.time() + 1
    assert seen.sum("nat_build_info") == 1


def test_a_damaged_record_is_reported_and_counted_and_stops_nothing(
    plugin: Plugin, container: Container, other_container: Container
) -> None:
    for namespace in (container, other_container):
        plugin.add(namespace, publish(8080 if namespace is container else 8081))
    record = plugin.state_directory / "attachments" / container.id / "net:eth0.json"
    record.write_text("{")
    done = run_metrics(plugin)
    assert done.returncode == 0
    assert str(record) in done.stderr
    seen = Exposition(done.stdout)
    assert seen.sum("nat_damaged_records") == 1
    assert seen.sum("nat_port_mappings_total") == 1
    record.write_text(
        json.dumps(
            {**json.loads((record.parent.parent / other_container.id / record.name).read_text()), "createdAt": "today"}
        )
    )
    assert Exposition(run_metrics(plugin).stdout).sum("nat_damaged_records") == 1


def test_a_counter_file_that_is_a_link_is_reported_and_not_used(
    plugin: Plugin, container: Container, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    counters = plugin.state_directory / "counters"
    plugin.add(container)
    (counters / "net").unlink()
    (counters / "net").symlink_to(elsewhere)
    plugin.add(container)
    done = run_metrics(plugin)
    assert done.returncode == 0
    assert "counters/net: Too many levels of symbolic links" in done.stderr
    assert elsewhere.read_text() == "mine"


@pytest.mark.frozen
def test_json_has_the_same_samples(plugin: Plugin, container: Container) -> None:
    plugin.add(container, publish(8080))
    done = run_metrics(plugin, "--json")
    metrics = json.loads(done.stdout)
    assert {key for metric in metrics for key in metric} == {"name", "type", "help", "samples"}
    seen = scrape(plugin)
    listed = {(s["name"], *sorted(s["labels"].items())) for metric in metrics for s in metric["samples"]}
    assert listed == {(s.name, *sorted(s.labels.items())) for s in seen.samples}


def without_net_admin(command: list[str]) -> list[str]:
    return ["setpriv", "--bounding-set=-net_admin", *command]


@pytest.mark.parametrize("before", [without_net_admin, unprivileged])
def test_missing_permissions_are_reported(
    plugin: Plugin, container: Container, before: Callable[[list[str]], list[str]]
) -> None:
    plugin.add(container)
    nsenter, net, dashes, *rest = command(plugin)
    done = subprocess.run([nsenter, net, dashes, *before(rest)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("quantum-nat: ")
    assert "root" in done.stderr or "CAP_NET_ADMIN" in done.stderr
    assert done.stdout == ""
