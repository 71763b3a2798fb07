"""What ADD, CHECK and DEL import, start and read if the table and the configuration are known already."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .plugin import publish
from .topology import HOST, wait_until

if TYPE_CHECKING:
    from .plugin import Attachment, Plugin
    from .topology import Container, Host, Namespace

ROOT = Path(__file__).parents[2]
NETLINK_NETFILTER = "12"
HOT_MODULES = ROOT / "packaging" / "hot-modules.txt"

# Runs one call and writes a report to the file in the first argument; the others are added to sys.path.
WATCHED_CALL = """
import sys

bare = set(sys.modules)
opened, started = [], []


def watch(event, details):
    if event in ("open", "os.listdir", "os.scandir"):
        opened.append(str(details[0]))
    elif event.startswith(("subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system")):
        started.append(event)


sys.addaudithook(watch)
sys.path += sys.argv[2:]
from cni_quantum_nat.__main__ import main

status = main()
modules = sorted(set(sys.modules) - bare)
import json

with open(sys.argv[1], "w") as report:
    json.dump({"modules": modules, "opened": opened, "started": started}, report)
sys.exit(status)
"""


def watch(attachment: Attachment, verb: str, report: Path) -> dict[str, Any]:
    """Run a call, and return what it imported, opened and started."""
    plugin = attachment.plugin
    packages = sysconfig.get_paths()["purelib"]
    plugin.command = [sys.executable, "-I", "-S", "-c", WATCHED_CALL, str(report), str(ROOT), packages]
    plugin.call(verb, attachment.configuration, attachment.container)
    seen: dict[str, Any] = json.loads(report.read_text())
    return seen


@pytest.fixture
def attachment(plugin: Plugin, container: Container, other_container: Container) -> Attachment:
    """An attachment on a host with a table, a known configuration and another container."""
    plugin.add(other_container, publish(8081))
    # The parts that it needs are there: the first container that needs one pays for it.
    plugin.add(container, publish(8082, protocol="udp", hostIP="127.0.0.1")).delete()
    return plugin.attachment(container, publish(8080), publish(8082, protocol="udp", hostIP="127.0.0.1"))


def listed() -> set[str]:
    """Return the modules on the list."""
    lines = (line.partition("#")[0].strip() for line in HOT_MODULES.read_text().splitlines())
    return set(filter(None, lines))


def test_calls_import_exactly_the_listed_modules(attachment: Attachment, client: Namespace, tmp_path: Path) -> None:
    loaded = set(watch(attachment, "ADD", tmp_path / "report")["modules"])
    loaded |= set(watch(attachment, "CHECK", tmp_path / "report")["modules"])
    client.ask(HOST[4], 8080)  # so that DEL has a connection to count
    loaded |= set(watch(attachment, "DEL", tmp_path / "report")["modules"])
    assert loaded == listed()


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_a_call_starts_no_process_and_reads_no_record_but_its_own(
    attachment: Attachment, other_container: Container, verb: str, tmp_path: Path
) -> None:
    if verb != "ADD":
        attachment.add()
    seen = watch(attachment, verb, tmp_path / "report")
    assert seen["started"] == []
    records = [path for path in seen["opened"] if "/attachments" in path]
    assert not [path for path in records if other_container.id in path or path.endswith("/attachments")]


def test_the_watch_detects_violations(attachment: Attachment, host: Host, tmp_path: Path) -> None:
    """Without the table, ADD loads what makes it and reads every record, which fails the tests above."""
    subprocess.run(["nsenter", f"--net={host.path}", "nft", "flush", "ruleset"], check=True)
    seen = watch(attachment, "ADD", tmp_path / "report")
    assert "cni_quantum_nat.backends.nftables.batch" in seen["modules"]
    assert any(path.endswith("/attachments") for path in seen["opened"])


def test_the_first_call_needs_neither_pydantic_nor_libnftables(
    plugin: Plugin, container: Container, tmp_path: Path
) -> None:
    """No table, no configuration that is known: what the plugin has in itself is enough for that."""
    seen = watch(plugin.attachment(container, publish(8080)), "ADD", tmp_path / "report")
    more = {name for name in seen["modules"] if name not in listed()}
    assert more == {
        "cni_quantum_nat.cni.ordinary",
        "cni_quantum_nat.model.filters",
        "cni_quantum_nat.backends.nftables.batch",
        "cni_quantum_nat.backends.nftables.compiled",
        "cni_quantum_nat.backends.nftables.text",
        "_blake2",
    }
    assert seen["started"] == []


def test_the_kernel_closes_sockets_left_to_it(plugin: Plugin, container: Container, host: Host) -> None:
    def netfilter_sockets() -> int:
        lines = host.run("cat", "/proc/thread-self/net/netlink").splitlines()[1:]
        return sum(line.split()[1] == NETLINK_NETFILTER for line in lines)

    before = netfilter_sockets()
    for _ in range(3):
        attachment = plugin.add(container, publish(8080, protocol="udp"))
        attachment.delete()
    wait_until(lambda: netfilter_sockets() == before, "the sockets are closed")
