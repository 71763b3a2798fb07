"""`quantum-nat show` and `quantum-nat list`: the records, and what the kernel has for them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .plugin import Plugin, publish
from .test_reconcile import flush
from .topology import HOST, Container, Namespace


def command(plugin: Plugin, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = ["nsenter", f"--net={plugin.host.path}", "--", *plugin.command, "--state-dir", str(plugin.state_directory)]
    path = f"{plugin.programs}:{os.environ['PATH']}" if plugin.programs else os.environ["PATH"]
    environment = {**os.environ, "PATH": path}
    return subprocess.run([*line, *arguments], capture_output=True, text=True, check=False, env=environment)


def as_json(plugin: Plugin, *arguments: str) -> list[dict[str, Any]]:
    done = command(plugin, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


@pytest.mark.frozen
@pytest.mark.behaviour
def test_list_counts_the_connections_of_each_attachment(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    plugin.add(other_container, network="other")
    for _ in range(2):
        assert client.ask(HOST[4], 8080) is not None
    connections = {record["network"]: record["connections"] for record in as_json(plugin, "list")}
    assert connections == {"net": 2, "other": 0}
    assert [record["network"] for record in as_json(plugin, "list", "--network", "other")] == ["other"]


@pytest.mark.frozen
@pytest.mark.behaviour
def test_show_reports_that_the_kernel_matches_the_record(container: Container, plugin: Plugin) -> None:
    attachment = plugin.add(container, publish(8080))
    (shown,) = as_json(plugin, "show", container.id[:5])
    assert shown["containerId"] == container.id
    assert shown["alive"] is True
    assert shown["differences"] == []
    assert os.path.exists(shown["record"])  # noqa: PTH110
    if shown["backend"] == "nftables":
        assert {element["comment"] for element in shown["elements"]} == {attachment.owner}
    else:
        assert shown["rules"]
        assert all(attachment.owner in rule for rule in shown["rules"])
    printed = command(plugin, "show", container.id).stdout
    assert "In the kernel: matches the record" in printed
    assert "Port:          8080->80/tcp" in printed


def test_show_reports_a_missing_element(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    plugin.host.run("nft", "delete", "element", "inet", "quantum", "endpoints4", "{ tcp . 8080 }")
    (shown,) = as_json(plugin, "show", container.id)
    assert [d for d in shown["differences"] if "endpoints4" in d and "missing" in d] == shown["differences"] != []


def test_show_lists_the_buckets_of_a_shared_port(
    container: Container, other_container: Container, plugin: Plugin
) -> None:
    for each in (container, other_container):
        plugin.add(each, publish(8080), sharedPorts=[8080])
    (shown,) = as_json(plugin, "show", container.id)
    buckets = [element for element in shown["elements"] if element["set"] == "buckets4"]
    assert len(buckets) == 32
    assert {bucket["data"][0] for bucket in buckets} == {container.address[4]}


def test_show_of_an_unknown_container_is_an_error(container: Container, plugin: Plugin) -> None:
    plugin.add(container)
    done = command(plugin, "show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no container ID begins with 'nobody'" in done.stderr


@pytest.mark.behaviour
def test_list_says_that_the_table_is_lost(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    flush(plugin.host)
    done = command(plugin, "list")
    assert done.returncode == 1
    assert "8080->80/tcp" in done.stdout
    assert "missing" in done.stderr
    assert "no published port and no outbound NAT" in done.stderr
    cure = done.stderr.split("`")[1]
    assert cure == f"quantum-nat --state-dir {plugin.state_directory} reconcile"
    assert command(plugin, *cure.split()[3:]).returncode == 0
    done = command(plugin, "list")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_networks_of_all_state_directories_are_shown(
    container: Container, other_container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    second = Plugin(plugin.host, plugin.state_directory.parent / "two", plugin.programs)
    plugin.add(container, publish(8080), network="first")
    second.add(other_container, publish(8081), network="second")
    for each in (plugin, second):
        (tmp_path / f"{each.state_directory.name}.conflist").write_text(
            json.dumps({"name": "n", "plugins": [each.configuration()]})
        )
    environment = {**plugin.environ, "NETCONFPATH": str(tmp_path)}
    line = ["nsenter", f"--net={plugin.host.path}", "--", *plugin.command]
    done = subprocess.run([*line, "list", "--json"], capture_output=True, text=True, check=True, env=environment)
    assert [(entry["network"], entry["stateDir"]) for entry in json.loads(done.stdout)] == [
        ("first", str(plugin.state_directory)),
        ("second", str(second.state_directory)),
    ]
    shown = subprocess.run(
        [*line, "port", other_container.id], capture_output=True, text=True, check=True, env=environment
    )
    assert "0.0.0.0:8081" in shown.stdout
    shown = subprocess.run([*line, "list"], capture_output=True, text=True, check=True, env=environment)
    assert "STATE DIRECTORY" in shown.stdout
    # A command that is about one says which others there are, and touches none of them.
    done = subprocess.run([*line, "reconcile"], capture_output=True, text=True, check=True, env=environment)
    assert f"`quantum-nat --state-dir {second.state_directory} reconcile`" in done.stderr + done.stdout
    assert command(second, "show", other_container.id).stdout.count("matches the record") == 1
