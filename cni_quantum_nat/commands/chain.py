"""`quantum-nat chain FILE`: add the plugin to a configuration list, instead of portmap if that is there, and undo it."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import IO_FAILURE, CniError, InvalidConfiguration
from .jsonedit import edited
from .jsonfile import SyntaxProblem, decode, line_and_column
from .netconf import ERROR, INTERFACE_PLUGINS, OURS, check, masquerades
from .parser import NO_STATE, add_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .parser import Commands

_PORTMAP = "portmap"
_FLANNEL = "/run/flannel/subnet.env"
_BEFORE = ".before-quantum-nat"  # no runtime reads a file with this suffix


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "chain",
        run,
        summary="add the plugin to a configuration list",
        description="Add quantum-nat to a configuration list: instead of portmap, with portmap's keys, or after the plugin that "
        "creates the interface. Masquerading by ipMasq becomes ours. Only the lines that change are written anew. The original is saved "
        "beside the file, for --undo. The file is replaced atomically.",
        examples=(
            "chain --dry-run /etc/cni/net.d/10-containers.conflist",
            """chain --settings '{"snatAddress": "192.0.2.1"}' /etc/cni/net.d/10-containers.conflist""",
            "chain --undo /etc/cni/net.d/10-containers.conflist",
        ),
        scope=NO_STATE,
    )
    parser.add_argument("file", metavar="FILE", help="a .conflist file")
    parser.add_argument(
        "--pod-network",
        metavar="CIDR",
        action="append",
        help="never masquerade to this network, other nodes' pods; may be repeated. The default is flannel's, if the host has one",
    )
    parser.add_argument(
        "--settings",
        metavar="JSON",
        type=_settings,
        default={},
        help="an object with keys for the plugin's entry, which may be there already",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the changes; exit status 1 if there are any")
    parser.add_argument("--undo", action="store_true", help="restore the original list")
    parser.add_argument("--json", action="store_true", help="print a JSON object with file, changed, before and after")


def _settings(text: str) -> dict[str, Any]:
    """Parse the keys for the plugin's entry; raise ArgumentTypeError if they are not an object."""
    try:
        settings = decode(text).value
    except SyntaxProblem as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error.message}") from error
    if not isinstance(settings, dict) or "type" in settings:
        raise argparse.ArgumentTypeError(f"{text!r} is not an object with keys for the plugin")
    return settings


def run(arguments: argparse.Namespace) -> int:
    """Change the list, and print the changes."""
    file = Path(os.path.realpath(arguments.file))
    before = _read(file)
    networks = _flannel_networks() if arguments.pod_network is None else arguments.pod_network
    notes: list[str] = []
    if arguments.undo:
        after = _undone(file, before)
    else:
        configuration = _list(file, before)
        after = edited(before, _with(arguments.settings, chained(configuration, networks)))
        notes = [*_about_masquerading(configuration, decode(after).value), *_remaining(file, after)]
    changed = after != before
    if changed and not arguments.dry_run:
        _put(file, before, after, undo=arguments.undo)
    _report(file, before, after, as_json=arguments.json)
    for note in notes:
        print(f"quantum-nat: {note}", file=sys.stderr)
    return int(changed and arguments.dry_run)


def chained(configuration: dict[str, Any], pod_networks: Sequence[str] = ()) -> dict[str, Any]:
    """Return the list with the plugin added; raise InvalidConfiguration if portmap is there more than once.

    It masquerades only what the list masqueraded before, by `ipMasq`, which goes: instead of portmap, or after a plugin with outbound
    NAT of its own, such as flannel. pod_networks: CIDRs that are never masqueraded to.
    """
    plugins = configuration["plugins"]
    types = [plugin.get("type") for plugin in plugins]
    if _has_ours(configuration):
        return {**configuration, "plugins": _without_ip_masq(plugins)}
    if types.count(_PORTMAP) > 1:
        raise InvalidConfiguration("portmap is in the list more than once", "Remove all but one.")
    if _PORTMAP in types:
        replaced = [
            {**_in_place_of(plugin), **_outbound(plugins, pod_networks)} if plugin.get("type") == _PORTMAP else plugin
            for plugin in plugins
        ]
        return {**configuration, "plugins": _without_ip_masq(replaced)}
    outbound = _outbound(plugins, pod_networks) if types[0] not in INTERFACE_PLUGINS else _spared(pod_networks)
    ours = {"type": OURS, "capabilities": {"portMappings": True}, **outbound}
    return {**configuration, "plugins": _without_ip_masq([plugins[0], ours, *plugins[1:]])}


def _without_ip_masq(plugins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plugins so that only ours masquerades; what passes ipMasq on to a plugin of its own, such as flannel, keeps it."""
    ours = next(plugin for plugin in plugins if plugin.get("type") == OURS)
    return [
        {key: value for key, value in plugin.items() if key != "ipMasq"} if masquerades(plugin, ours) else plugin
        for plugin in plugins
    ]


def _with(settings: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the list with these keys in the plugin's entry."""
    plugins = [{**plugin, **settings} if plugin.get("type") == OURS else plugin for plugin in configuration["plugins"]]
    return {**configuration, "plugins": plugins}


def _outbound(plugins: list[dict[str, Any]], pod_networks: Sequence[str]) -> dict[str, Any]:
    """Return our keys for outbound NAT, so that no other traffic is masqueraded than before."""
    is_masqueraded = any(plugin.get("ipMasq") is True for plugin in plugins)
    return _spared(pod_networks) if is_masqueraded else {"masquerade": False}


def _spared(pod_networks: Sequence[str]) -> dict[str, Any]:
    return {"noMasqueradeTo": list(pod_networks)} if pod_networks else {}


def _flannel_networks() -> list[str]:
    """Return the pod networks of the cluster that flannel has written down for this host."""
    try:
        lines = Path(_FLANNEL).read_text().splitlines()
    except OSError:
        return []
    variables = dict(line.partition("=")[::2] for line in lines)
    return [
        network
        for name in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
        for network in variables.get(name, "").split(",")
        if network
    ]


def _in_place_of(portmap: dict[str, Any]) -> dict[str, Any]:
    """Return our entry for portmap's. All keys have the same meaning, except that portmap has another default backend."""
    ours = {**portmap, "type": OURS, "capabilities": {**portmap.get("capabilities", {}), "portMappings": True}}
    conditions = [*portmap.get("conditionsV4", ()), *portmap.get("conditionsV6", ())]
    if "backend" not in portmap and conditions and str(conditions[0])[:1] in ("-", "!"):
        ours["backend"] = "iptables"
    return ours


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise InvalidConfiguration(f"{file} is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise CniError(
            IO_FAILURE,
            f"cannot read {file}: {error.strerror}",
            f"Name a .conflist file; those of {file.parent} are listed by `ls {file.parent}`.",
        ) from error


def _list(file: Path, text: str) -> dict[str, Any]:
    try:
        document = decode(text)
    except SyntaxProblem as error:
        line, column = line_and_column(text, error.offset)
        raise InvalidConfiguration(f"{file}:{line}:{column}: not JSON: {error.message}") from error
    for path, offset in document.repeated:
        line, column = line_and_column(text, offset)
        raise InvalidConfiguration(f"{file}:{line}:{column}: {path[-1]} is there twice", "Remove one of them.")
    configuration = document.value
    plugins = configuration.get("plugins") if isinstance(configuration, dict) else None
    if not (isinstance(plugins, list) and plugins and all(isinstance(plugin, dict) for plugin in plugins)):
        raise InvalidConfiguration(f"{file} is not a configuration list", 'It needs "plugins", a list of objects.')
    return dict(configuration)


def _about_masquerading(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Say what the change does to masquerading, where it changes who does it."""
    kept = [plugin["type"] for plugin in after["plugins"] if "ipMasq" in plugin]
    for plugin in before["plugins"]:
        if "ipMasq" in plugin and plugin["type"] not in kept:
            yield (
                f"{OURS} masquerades instead of {plugin['type']}, whose ipMasq is removed; containers that run now keep its rules "
                "until they are deleted"
            )


def _remaining(file: Path, text: str) -> list[str]:
    """Return what `validate` would warn of; raise InvalidConfiguration for faults."""
    findings = list(check(decode(text).value, ".conflist"))
    faults = [finding.message for finding in findings if finding.severity == ERROR]
    if faults:
        raise InvalidConfiguration(f"{file}: {'; '.join(faults)}", "Correct that first; the file is unchanged.")
    return [f"{file}: {'.'.join(map(str, finding.path))}: {finding.message}" for finding in findings]


def _undone(file: Path, now: str) -> str:
    kept = _kept(file)
    if not kept.exists():
        raise InvalidConfiguration(
            f"{kept} does not exist", "`quantum-nat chain` has not changed the list, or that is already undone."
        )
    before = _read(kept)
    if _others(chained(_list(kept, before))) != _others(_list(file, now)):
        raise InvalidConfiguration(
            f"{file} has changed since", f"Edit it by hand, then remove the original: `rm {kept}`."
        )
    return before


def _others(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the list without what `chain`, of this version or an older one, may have changed: the keys of our entry, and ipMasq."""
    plugins = [
        {"type": OURS} if plugin.get("type") == OURS else {key: plugin[key] for key in plugin if key != "ipMasq"}
        for plugin in configuration["plugins"]
    ]
    return {**configuration, "plugins": plugins}


def _has_ours(configuration: dict[str, Any]) -> bool:
    return any(plugin.get("type") == OURS for plugin in configuration["plugins"])


def _kept(file: Path) -> Path:
    return file.with_name(file.name + _BEFORE)


def _put(file: Path, before: str, after: str, *, undo: bool) -> None:
    if not undo and not (_kept(file).exists() and _has_ours(decode(before).value)):
        _replace(_kept(file), before, like=file)
    _replace(file, after, like=file)
    if undo:
        _kept(file).unlink()


def _replace(file: Path, text: str, *, like: Path) -> None:
    """Replace a file atomically, with the owner and mode of another."""
    status = like.stat()
    pending = file.with_name(f".{file.name}.pending")
    with suppress(FileNotFoundError):
        pending.unlink()  # left by a killed command
    try:
        with pending.open("x") as stream:
            os.fchown(stream.fileno(), status.st_uid, status.st_gid)
            os.fchmod(stream.fileno(), status.st_mode & 0o7777)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        pending.rename(file)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _report(file: Path, before: str, after: str, *, as_json: bool) -> None:
    if as_json:
        changed = before != after
        print(json.dumps({"file": str(file), "changed": changed, "before": before, "after": after}, indent=2))
        return
    names = f"{file} (before)", f"{file} (after)"
    print(
        "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), *names)) or f"{file}: unchanged"
    )
