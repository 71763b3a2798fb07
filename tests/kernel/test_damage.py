"""Damaged and foreign records: each is reported, no link is followed, and all other containers keep working."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .plugin import Attachment, Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace

Damage = Callable[[Path, Path], object]


def _change(record: Path, **keys: object) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | keys))


def _replace_by_link(record: Path, target: Path) -> None:
    target.write_text(record.read_text())
    record.unlink()
    record.symlink_to(target)


def _replace_by_pipe(record: Path, _: Path) -> None:
    record.unlink()
    os.mkfifo(record, 0o600)


def _replace_by_directory(record: Path, _: Path) -> None:
    record.unlink()
    record.mkdir()


def _replace_container_by_link(record: Path, target: Path) -> None:
    record.parent.rename(target)
    record.parent.symlink_to(target)


def _replace_container_by_file(record: Path, _: Path) -> None:
    record.unlink()
    record.parent.rmdir()
    record.parent.write_text("")


DAMAGES: dict[str, Damage] = {
    "truncated": lambda record, _: os.truncate(record, record.stat().st_size // 2),
    "empty": lambda record, _: os.truncate(record, 0),
    "bytes": lambda record, _: record.write_bytes(b"\xff\xfe\0"),
    "foreign": lambda record, _: record.write_text('{"somebody": "else"}'),
    "deep": lambda record, _: record.write_text("[" * 100_000),
    "another's": lambda record, _: _change(record, containerId="another"),
    "not a format": lambda record, _: _change(record, format="two"),
    "a port that is syntax": lambda record, _: _change(record, portMappings=[{**_mapping(record), "hostPort": "1 }"}]),
    "a wrong type": lambda record, _: _change(record, endpoints=[{"address": 5, "hostInterface": ""}]),
    "writable by others": lambda record, _: record.chmod(0o666),
    "somebody else's": lambda record, _: os.chown(record, 65534, 65534),
    "link": _replace_by_link,
    "pipe": _replace_by_pipe,
    "container link": _replace_container_by_link,
    "container file": _replace_container_by_file,
}


def _mapping(record: Path) -> dict[str, object]:
    mapping: dict[str, object] = json.loads(record.read_text())["portMappings"][0]
    return mapping


def _record_of(attachment: Attachment) -> Path:
    directory = attachment.plugin.state_directory / "attachments" / attachment.container.id
    return directory / f"net:{attachment.container.interface}.json"


@pytest.mark.frozen
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_reported_and_everything_else_continues(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, damage: str
) -> None:
    other_container.serve("other", 80)
    elsewhere = plugin.state_directory.parent / "elsewhere"
    web, other = plugin.add(container, publish(8080)), plugin.add(other_container, publish(8081))
    record = _record_of(web)
    DAMAGES[damage](record, elsewhere)
    places = {elsewhere: _contents(elsewhere)}

    assert client.ask(HOST[4], 8080).server == "web", "the rules are unchanged"
    doctor = plugin.operate("doctor")
    assert str(record.parent) in doctor.stdout
    assert "is damaged" in doctor.stdout
    assert "Traceback" not in doctor.stderr
    assert [entry["containerId"] for entry in json.loads(plugin.operate("list", "--json").stdout)] == [
        other_container.id
    ]
    other.check()
    host.run("nft", "flush ruleset")
    third = plugin.add(host.container(), publish(8082))
    assert client.ask(HOST[4], 8081).server == "other", "an ADD repairs what it can read"
    third.delete()

    web.add()
    assert client.ask(HOST[4], 8080).server == "web"
    web.check()
    another = elsewhere.with_name("another")
    DAMAGES[damage](record, another)
    places[another] = _contents(another)
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    assert not os.path.lexists(record.parent)
    assert client.ask(HOST[4], 8081).server == "other"
    assert {place: _contents(place) for place in places} == places, "a link is not followed"


def _contents(place: Path) -> dict[str, bytes]:
    if not place.exists():
        return {}
    files = [place] if place.is_file() else sorted(place.iterdir())
    return {file.name: file.read_bytes() for file in files}


def test_files_that_are_not_records_do_not_prevent_repair(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    (plugin.state_directory / "attachments" / "README").write_text("what is this?")
    (plugin.state_directory / "attachments" / container.id / "backup~").write_text("{}")
    (plugin.state_directory / "attachments" / container.id / "net:dir.json").mkdir()
    host.run("nft", "flush ruleset")
    plugin.add(host.container())
    assert client.ask(HOST[4], 8080).server == "web"
    web.check()
    doctor = plugin.operate("doctor").stdout
    for name in ("README", "backup~", "net:dir.json"):
        assert name in doctor


def test_a_record_of_a_newer_version_is_left_alone(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    record = _record_of(web)
    _change(record, format=99, somethingNew={"a": 1})
    content = record.read_bytes()
    for call in (web.add, web.delete, web.check):
        with pytest.raises(PluginError, match="format 99") as caught:
            call()
        assert caught.value.code == 108
    assert record.read_bytes() == content
    assert client.ask(HOST[4], 8080).server == "web"
    plugin.add(other_container, publish(8081)).delete()
    assert "format 99" in plugin.operate("doctor").stdout
    plugin.operate("reconcile")
    assert client.ask(HOST[4], 8080).server == "web", "nothing of an unknown format is removed"


def test_a_record_in_the_first_format_is_read_and_upgraded_by_the_next_add(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    record = _record_of(web)
    content = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in content.items() if key not in ("format", "bootId")}))
    web.check()
    host.run("nft", "flush ruleset")
    plugin.add(host.container())
    assert client.ask(HOST[4], 8080).server == "web", "it is repaired from the old record"
    web.add()
    upgraded = json.loads(record.read_text())
    assert upgraded["format"] == content["format"]
    assert upgraded["bootId"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("part", ["", "attachments", "tables", "networks", "counters"])
@pytest.mark.parametrize("kind", ["link", "file", "somebody else's"])
def test_a_foreign_directory_is_refused_and_not_used(
    container: Container, plugin: Plugin, part: str, kind: str
) -> None:
    web = plugin.add(container, publish(8080))
    elsewhere = plugin.state_directory.parent / "elsewhere"
    place = plugin.state_directory / part
    if kind == "somebody else's":
        os.chown(place, 65534, 65534)
    else:
        place.rename(elsewhere)
        place.symlink_to(elsewhere) if kind == "link" else place.write_text("")
    before = sorted(path.name for path in elsewhere.rglob("*"))
    for call in (web.add, web.delete, web.check):
        with pytest.raises(PluginError, match=str(place)) as caught:
            call()
        assert caught.value.code == 5
    assert sorted(path.name for path in elsewhere.rglob("*")) == before
    doctor = plugin.operate("doctor")
    assert f"cannot use the state directory {place}" in doctor.stdout
    assert "Traceback" not in doctor.stderr


@pytest.mark.parametrize("planted", ["link", "hard link", "pipe", "leftover"])
def test_links_and_pipes_at_a_pending_file_are_never_written_through(
    container: Container, plugin: Plugin, planted: str
) -> None:
    plugin.state_directory.mkdir(mode=0o700)
    pending, victim = plugin.state_directory / "pending", plugin.state_directory.parent / "victim"
    victim.write_text("precious")
    if planted == "link":
        pending.symlink_to(victim)
    elif planted == "hard link":
        pending.hardlink_to(victim)
    elif planted == "pipe":
        os.mkfifo(pending)
    else:
        pending.write_text("half a rec")
    plugin.add(container, publish(8080)).check()
    assert victim.read_text() == "precious"
    assert not os.path.lexists(pending)


def test_a_damaged_cached_configuration_is_replaced(container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080))
    cache = plugin.state_directory / "networks" / "net.json"
    sound = json.loads(cache.read_text())
    for content in ("", "[]", "{}", json.dumps({**sound, "normalised": {}}), json.dumps({**sound, "normalised": None})):
        cache.write_text(content)
        web.add()
        assert json.loads(cache.read_text()) == sound
        cache.write_text(content)
        web.delete()


@pytest.mark.behaviour
def test_records_of_an_earlier_boot_occupy_no_port_and_are_not_restored(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """With a stateDir on disk: the path of its namespace may exist again, for another container."""
    old = plugin.add(container, publish(8080))
    gone = plugin.add(host.container(), publish(8083))
    for attachment in (old, gone):
        _change(_record_of(attachment), bootId="11111111-2222-3333-4444-555555555555")
    _lose_all_rules(host)
    assert "earlier boot" in plugin.operate("doctor").stdout
    other_container.serve("other", 80)
    new = plugin.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "other"
    assert client.is_refused(HOST[4], 8083)
    assert host.owners() - {new.owner} <= {"shared"}
    new.check()
    old.delete()
    gone.delete_again_like_containerd()
    assert client.ask(HOST[4], 8080).server == "other"
    assert "earlier boot" not in plugin.operate("doctor").stdout


def test_gc_removes_records_of_an_earlier_boot(container: Container, plugin: Plugin) -> None:
    for collect in (lambda: plugin.operate("gc"), lambda: plugin.gc({"cni.dev/valid-attachments": []})):
        record = _record_of(plugin.add(container, publish(8080)))
        _change(record, bootId="11111111-2222-3333-4444-555555555555")
        collect()
        assert not record.exists()


def _lose_all_rules(host: Host) -> None:
    if host.backend == "nftables":
        host.run("nft", "flush ruleset")
        return
    for program in ("iptables", "ip6tables"):
        for table in ("nat", "raw", "filter"):
            for option in ("-F", "-X"):
                host.run(f"{program}-{host.backend.removeprefix('iptables-')}", "-t", table, option)
