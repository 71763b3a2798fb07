"""Hostile input to the real process: one CNI error object, exit status 1, and nothing changed."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .plugin import publish
from .topology import HOST

if TYPE_CHECKING:
    from .plugin import Attachment, Plugin
    from .topology import Container, Host, Namespace

MIB = 1 << 20


def send(attachment: Attachment, raw: bytes, command: str = "ADD", **variables: str) -> tuple[int, dict[str, Any]]:
    """Run a call with these bytes on standard input, and return its exit status and answer."""
    plugin, container = attachment.plugin, attachment.container
    environment = {**plugin.environ, "CNI_COMMAND": command, "CNI_CONTAINERID": container.id, "CNI_PATH": "/opt"}
    environment |= {"CNI_NETNS": str(container.path), "CNI_IFNAME": "eth0", **variables}
    line = ["nsenter", f"--net={plugin.host.path}", "--", *plugin.command]
    done = subprocess.run(line, input=raw, env=environment, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def with_keys(attachment: Attachment, **keys: Any) -> bytes:
    return json.dumps({**attachment.configuration, **keys}).encode()


@pytest.mark.frozen
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 6),
        (b"\xff\xfe\x00", 6),
        (b"{", 6),
        (b'{"cniVersion": "1.1.0", "name": ', 6),
        (b'{"cniVersion": "1.1.0", "name": "net", "a": NaN}', 6),
        (b"[" * MIB, 6),
        (b'{"a":' * MIB, 6),
        (b'{"cniVersion": "1.1.0", "name": "' + b"x" * 50 * MIB + b'"}', 6),
        (b'{"cniVersion": "1.1.0", "name": "a", "name": "a/b"}', 7),
        (b'{"cniVersion": "1.1.0", "name": "a\\nb"}', 7),
        (b"1" * 5000, 6),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
def test_an_invalid_configuration_is_refused_and_changes_nothing(
    host: Host, container: Container, other_container: Container, plugin: Plugin, command: str, raw: bytes, code: int
) -> None:
    plugin.add(other_container, publish(8081))
    before = host.ruleset()
    status, answer = send(plugin.attachment(container, publish(8080)), raw, command)
    assert (status, answer["code"]) == (1, code)
    assert answer["msg"]
    assert host.ruleset() == before


INJECTIONS = ['"', ";", "\n", "'", "\\", "} }; flush ruleset #", '" : drop } #', "$(reboot)", "a -j ACCEPT", "*", "\t"]


@pytest.mark.behaviour
@pytest.mark.parametrize("text", INJECTIONS)
def test_no_input_is_read_as_syntax(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, text: str
) -> None:
    """Neither by ADD, nor when the rules are rebuilt after a flush."""
    other_container.serve("other", 80)
    plugin.add(other_container, publish(8081))
    web = plugin.attachment(container, publish(8080, hostIP=f"127.0.0.1{text}"))
    attempts = [
        (with_keys(web), {}),
        (with_keys(web, name=f"net{text}"), {}),
        (with_keys(web, externalInterface=f"up{text}"[:15]), {}),
        (with_keys(web, conditionsV4=["ip", "saddr", text]), {}),
        (with_keys(web, snatAddress=f"198.51.100.1{text}"), {}),
        (with_keys(plugin.attachment(container, publish(8080, protocol=f"tcp{text}"))), {}),
        (with_keys(plugin.attachment(container)), {"CNI_CONTAINERID": f"c{text}"}),
    ]
    for raw, variables in attempts:
        status, answer = send(web, raw, **variables)
        assert (status, answer["code"] in (4, 7)) == (1, True), (raw, answer)
    sound = plugin.attachment(container, publish(8080))
    variables = {"CNI_IFNAME": f"e{text}"[:15], "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME={text}"}
    send(sound, with_keys(plugin.attachment(container)), **variables)  # an interface may have such a name
    if host.backend == "nftables":
        host.run("nft", "flush ruleset")
    else:
        host.run(host.backend, "-t", "nat", "-F")
    sound.add().check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "other"
    assert plugin.operate("reconcile", "--dry-run").returncode == 0


def test_ten_thousand_port_mappings_are_all_published_or_none(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, *(publish(20000 + number) for number in range(10_000)))
    for port in (20000, 25000, 29999):
        assert client.ask(HOST[4], port).server == "web"
    web.check()
    web.delete()
    assert host.owners() == set()
