"""A record is in force or it is not: of this boot, of this host, its container's namespace alive, gone, or not to be told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .peer import inside
from .plugin import Attachment, Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.behaviour
# What a call sees whose mount namespace has another /run/netns: a plain directory, or plain files in place of the mounts.
EMPTY = 'mount -t tmpfs none /run/netns && exec "$@"'
PLAIN_FILE = 'mount -t tmpfs none /run/netns && touch "$QUANTUM_NETNS" && exec "$@"'
elsewhere = pytest.mark.parametrize("seen", [EMPTY, PLAIN_FILE])


def from_elsewhere(plugin: Plugin, seen: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the host, in a mount namespace of its own."""
    with inside(plugin.host.path):
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", seen, "sh", *command],
            env=plugin.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )


@elsewhere
@pytest.mark.parametrize("how", ["gc", "GC"])
def test_a_living_container_survives_gc_from_another_mount_namespace(
    client: Namespace, container: Container, plugin: Plugin, seen: str, how: str
) -> None:
    """At 1.0.0 (defects 7 and 9) its rules were gone, with exit status 0: what could not be seen counted as dead."""
    web = plugin.add(container, publish(8080))
    environment: dict[str, Any] = {"QUANTUM_NETNS": str(container.path)}
    if how == "gc":
        done = from_elsewhere(
            plugin, seen, *plugin.command, "--state-dir", str(plugin.state_directory), "gc", **environment
        )
        assert done.returncode == 1
        assert f"{container.id} (eth0 on network net) is left alone" in done.stderr
    else:
        process = plugin.start(
            "GC", plugin.configuration(), before=("unshare", "--mount", "sh", "-c", seen, "sh"), **environment
        )
        _, complaints = process.communicate(timeout=90)
        assert process.returncode == 0
        assert f"{container.id} (eth0 on network net) is left alone" in complaints
    assert client.ask(HOST[4], 8080).server == "web"
    web.check()


@elsewhere
def test_a_living_containers_port_is_not_taken_from_another_mount_namespace(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin, seen: str
) -> None:
    """At 1.0.0 (defect 9) its port silently led to whoever asked next."""
    plugin.add(container, publish(8080))
    wanted = plugin.attachment(other_container, publish(8080))
    bind = 'touch "$KEPT" && mount --bind "$CNI_NETNS" "$KEPT" && '
    script = bind + seen.replace('exec "$@"', 'touch "$CNI_NETNS" && mount --bind "$KEPT" "$CNI_NETNS" && exec "$@"')
    kept = plugin.state_directory.parent / "kept"
    process = plugin.start(
        "ADD",
        wanted.configuration,
        other_container,
        before=("unshare", "--mount", "sh", "-c", script, "sh"),
        QUANTUM_NETNS=str(container.path),
        KEPT=str(kept),
    )
    with pytest.raises(PluginError, match=f"already in use by container {container.id}") as caught:
        plugin.finish(process)
    assert caught.value.code == 100
    assert "cannot be told from here" in caught.value.details
    assert client.ask(HOST[4], 8080).server == "web"


def test_a_plain_file_is_no_network_namespace(container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 9) ADD took `CNI_NETNS=/etc/passwd`."""
    attachment = plugin.attachment(container, publish(8080))
    with pytest.raises(PluginError, match="not a network namespace in this mount namespace") as caught:
        plugin.call("ADD", attachment.configuration, container, CNI_NETNS="/etc/passwd")
    assert caught.value.code == 4


def damage(attachment: Attachment) -> Path:
    path = attachment.plugin.state_directory / "attachments" / attachment.container.id / "net:eth0.json"
    path.write_text("{")
    return path


def test_a_damaged_record_stops_the_gc_of_no_network(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 17) GC of each network failed forever, and the record stayed although its owner was not valid."""
    path = damage(plugin.add(container, publish(8080)))
    other_container.serve("other", 80)
    kept = plugin.add(other_container, publish(8081), network="other")
    plugin.call(
        "GC",
        plugin.configuration("other")
        | {"cni.dev/valid-attachments": [{"containerID": other_container.id, "ifname": "eth0"}]},
    )
    assert path.exists(), "it is not of this network"
    plugin.gc({"cni.dev/valid-attachments": []})
    assert not path.exists()
    assert client.is_refused(HOST[4], 8080)
    assert client.ask(HOST[4], 8081).server == "other"
    assert host.owners() == {kept.owner}


def test_a_damaged_record_of_a_valid_attachment_stays_with_its_rules(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    path = damage(plugin.add(container, publish(8080)))
    plugin.gc({"cni.dev/valid-attachments": [{"containerID": container.id, "ifname": "eth0"}]})
    assert path.exists()
    assert client.ask(HOST[4], 8080).server == "web"


def test_a_damaged_record_of_a_living_container_keeps_its_port(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 38) it gave the port away with iptables."""
    damage(plugin.add(container, publish(8080)))
    with pytest.raises(PluginError, match="8080/tcp is already in use") as caught:
        plugin.add(other_container, publish(8080))
    assert caught.value.code == 100
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.parametrize("entry", [{"containerPort": 80, "hostIP": "::"}, {"containerPort": 80, "hostIP": "::1"}])
def test_a_mapping_of_a_family_that_the_container_lacks_makes_no_damaged_record(
    host: Host, plugin: Plugin, entry: dict[str, Any]
) -> None:
    """At 1.0.0 (defect 5) ADD succeeded, CHECK said 102, and GC of each network 106, forever."""
    container = host.container(families=(4,))
    keys: dict[str, Any] = {"ipv6Localhost": True} if entry["hostIP"] == "::1" and plugin.programs is None else {}
    if entry["hostIP"] == "::1" and not keys:
        pytest.skip("the kernel has no ::1 that iptables could lead to a container")
    web = plugin.add(container, entry, **keys)
    web.check()
    plugin.gc({"cni.dev/valid-attachments": [{"containerID": container.id, "ifname": "eth0"}]})
    web.check()
    web.delete()
    assert host.owners() == set()


@pytest.mark.parametrize("command", ["reconcile", "gc", "list", "doctor"])
def test_a_mistyped_state_directory_is_an_error(
    client: Namespace, container: Container, plugin: Plugin, command: str
) -> None:
    """At 1.0.0 (defect 27) it was an empty list and "0 problems", exit status 0; and reconcile removed what was there."""
    plugin.add(container, publish(8080))
    mistyped = Plugin(plugin.host, plugin.state_directory.with_name("stat"), plugin.programs)
    done = mistyped.operate(command)
    assert done.returncode != 0
    assert str(mistyped.state_directory) in done.stderr
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.nftables
def test_reconcile_leaves_the_rules_of_another_state_directory(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 27) doctor advised it, and it removed living containers' rules."""
    other_container.serve("other", 80)
    plugin.add(container, publish(8080))
    second = Plugin(plugin.host, plugin.state_directory.with_name("second"), plugin.programs)
    other = second.add(other_container, publish(8081))
    for directory in (plugin, second):
        assert directory.operate("reconcile").returncode == 0
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "other"
    with pytest.raises(PluginError) as caught:
        second.add(plugin.host.container(), publish(8080))
    assert caught.value.code == 100
    plugin.host.run("nft", "flush", "ruleset")
    with pytest.raises(PluginError) as caught:
        other.check()
    assert f"--state-dir {second.state_directory} reconcile" in caught.value.details
    assert second.operate("reconcile").returncode == 0
    other.check()


def test_networks_that_are_gone_are_forgotten_after_a_day(
    container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 46) their configuration and counters stayed forever, and each scrape had their lines."""
    plugin.add(container, publish(8080), network="kept")
    for network in ("gone", "recent"):
        plugin.add(other_container, network=network).delete()
    for network in ("kept", "gone"):
        for file in (f"networks/{network}.json", f"counters/{network}"):
            os.utime(plugin.state_directory / file, (0, 0))
    plugin.call(
        "GC",
        plugin.configuration("kept") | {"cni.dev/valid-attachments": [{"containerID": container.id, "ifname": "eth0"}]},
    )
    assert {path.name for path in (plugin.state_directory / "networks").iterdir()} == {"kept.json", "recent.json"}
    assert {path.name for path in (plugin.state_directory / "counters").iterdir()} == {"kept", "recent"}


@pytest.mark.parametrize("command", ["gc", "reconcile"])
def test_an_operators_commands_forget_them_too(container: Container, plugin: Plugin, command: str) -> None:
    """Not each runtime calls GC."""
    plugin.add(container, network="gone").delete()
    os.utime(plugin.state_directory / "networks" / "gone.json", (0, 0))
    assert plugin.operate(command).returncode == 0
    assert list((plugin.state_directory / "networks").iterdir()) == []


def test_a_directory_of_somebody_else_keeps_its_mode(container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 47) `stateDir` changed the mode of each existing directory to 0700: of /tmp, for example."""
    plugin.state_directory.mkdir(mode=0o755)
    (plugin.state_directory / "precious").write_text("")
    with pytest.raises(PluginError, match="it has files of others, 'precious'") as caught:
        plugin.add(container, publish(8080))
    assert caught.value.code == 5
    assert plugin.state_directory.stat().st_mode & 0o777 == 0o755
    (plugin.state_directory / "precious").unlink()
    plugin.add(container, publish(8080)).check()
    assert plugin.state_directory.stat().st_mode & 0o777 == 0o700
    plugin.state_directory.chmod(0o755)
    plugin.add(container, publish(8080)).check()
    assert plugin.state_directory.stat().st_mode & 0o777 == 0o700
