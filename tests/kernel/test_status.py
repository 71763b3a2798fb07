"""`quantum-nat status` and `quantum-nat who`."""

from __future__ import annotations

import re
import shutil

import pytest

from .plugin import Plugin, publish
from .test_reconcile import flush
from .test_show import as_json, command
from .topology import HOST, Container, Host


@pytest.mark.behaviour
def test_status_is_one_line_and_an_exit_status(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    done = command(plugin, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"ok: table [a-z ]+, cover [a-z ]+, 1 attachments, 0 differences, last rebuilt: \w+( ago)?\n", done.stdout
    )
    flush(host)
    done = command(plugin, "status")
    assert done.returncode == 1
    assert re.fullmatch(
        r"not ok: table [a-z ]+, cover [a-z ]+, 1 attachments, [1-9]\d* differences, last .*\n", done.stdout
    )
    assert command(plugin, "reconcile").returncode == 0
    done = command(plugin, "status")
    assert (done.returncode, done.stdout[:4]) == (0, "ok: ")
    assert done.stdout.endswith("s ago\n")


def test_status_sees_one_missing_element_and_a_damaged_record(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    plugin.add(other_container)
    host.run("nft", "delete", "element", "inet", "quantum", "endpoints4", "{ tcp . 8080 }")
    (record,) = (plugin.state_directory / "attachments" / other_container.id).iterdir()
    record.write_text("{")
    done = command(plugin, "status", "--json")
    assert done.returncode == 1
    assert '"table": "present"' in done.stdout
    assert '"differences": 1' in done.stdout
    assert '"damaged": 1' in done.stdout
    assert str(record) in done.stderr


@pytest.mark.behaviour
def test_who_names_containers_and_processes(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080), publish(8080, 53, protocol="udp", hostIP=HOST[4]))
    host.serve("somebody", 9090)
    shown = command(plugin, "who", "8080").stdout
    assert f"tcp 0.0.0.0: container {container.id} (eth0 on network net), its port 80\n" in shown
    assert f"udp {HOST[4]}: container {container.id} (eth0 on network net), its port 53\n" in shown
    assert [entry["protocol"] for entry in as_json(plugin, "who", "8080/udp")] == ["udp"]
    listening = as_json(plugin, "who", "9090/tcp")
    assert listening
    assert all("python" in process for entry in listening for process in entry["processes"])
    done = command(plugin, "who", "7070")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody on record or listening has host port 7070" in done.stderr
    for nonsense in ("0", "65536", "http", "80/icmp"):
        assert command(plugin, "who", nonsense).returncode == 2


def test_both_refuse_a_directory_that_is_not_there(plugin: Plugin, container: Container) -> None:
    plugin.add(container).delete()
    shutil.rmtree(plugin.state_directory)
    for line in (["status"], ["who", "80"]):
        done = command(plugin, *line)
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no state directory" in done.stderr
