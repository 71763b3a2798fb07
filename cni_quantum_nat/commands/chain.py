"""`quantum-nat chain FILE`: add the plugin to a configuration list, instead of portmap if that is there, and undo it."""

from __future__ import annotations

import difflib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import InvalidConfiguration
from .jsonfile import SyntaxProblem, decode, line_and_column
from .netconf import ERROR, OURS, check
from .parser import add_command

if TYPE_CHECKING:
    import argparse

    from .parser import Commands

_PORTMAP = "portmap"
_BEFORE = ".before-quantum-nat"  # no runtime reads a file with this suffix


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "chain",
        run,
        summary="add the plugin to a configuration list",
        description="Add quantum-nat to a configuration list: instead of portmap, with portmap's keys, or after the plugin that "
        "creates the interface. The original is saved beside the file, for --undo. The file is replaced atomically.",
        examples=(
            "chain --dry-run /etc/cni/net.d/10-containers.conflist",
            "chain --undo /etc/cni/net.d/10-containers.conflist",
        ),
    )
    parser.add_argument("file", metavar="FILE", help="a .conflist file")
    parser.add_argument("--dry-run", action="store_true", help="only print the changes; exit status 1 if there are any")
    parser.add_argument("--undo", action="store_true", help="restore the original list")
    parser.add_argument("--json", action="store_true", help="print a JSON object with file, changed, before and after")


def run(arguments: argparse.Namespace) -> int:
    """Change the list, and print the changes."""
    file = Path(os.path.realpath(arguments.file))
    before = _read(file)
    after = _undone(file, before) if arguments.undo else _write_list(chained(_list(file, before)), before)
    if not arguments.undo:
        _refuse_faults(file, after)
    changed = after != before
    if changed and not arguments.dry_run:
        _put(file, before, after, undo=arguments.undo)
    _report(file, before, after, as_json=arguments.json)
    return int(changed and arguments.dry_run)


def chained(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the list with the plugin added; raise InvalidConfiguration if portmap is there more than once."""
    plugins = configuration["plugins"]
    types = [plugin.get("type") for plugin in plugins]
    if OURS in types:
        return configuration
    if types.count(_PORTMAP) > 1:
        raise InvalidConfiguration("portmap is in the list more than once", "Remove all but one.")
    if _PORTMAP in types:
        replaced = [_in_place_of(plugin) if plugin.get("type") == _PORTMAP else plugin for plugin in plugins]
        return {**configuration, "plugins": replaced}
    ours = {"type": OURS, "capabilities": {"portMappings": True}}
    return {**configuration, "plugins": [plugins[0], ours, *plugins[1:]]}


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


def _list(file: Path, text: str) -> dict[str, Any]:
    try:
        configuration = decode(text).value
    except SyntaxProblem as error:
        line, column = line_and_column(text, error.offset)
        raise InvalidConfiguration(f"{file}:{line}:{column}: not JSON: {error.message}") from error
    plugins = configuration.get("plugins") if isinstance(configuration, dict) else None
    if not (isinstance(plugins, list) and plugins and all(isinstance(plugin, dict) for plugin in plugins)):
        raise InvalidConfiguration(f"{file} is not a configuration list", 'It needs "plugins", a list of objects.')
    return dict(configuration)


def _write_list(configuration: dict[str, Any], before: str) -> str:
    """Return the list as text, unchanged if its content is."""
    if configuration == decode(before).value:
        return before
    return json.dumps(configuration, indent=2, ensure_ascii=False) + "\n"


def _refuse_faults(file: Path, text: str) -> None:
    faults = [finding for finding in check(decode(text).value, ".conflist") if finding.severity == ERROR]
    if faults:
        raise InvalidConfiguration(
            f"{file}: {'; '.join(finding.message for finding in faults)}", "Correct that first; the file is unchanged."
        )


def _undone(file: Path, now: str) -> str:
    kept = _kept(file)
    if not kept.exists():
        raise InvalidConfiguration(
            f"{kept} does not exist", "`quantum-nat chain` has not changed the list, or that is already undone."
        )
    before = _read(kept)
    if _write_list(chained(_list(kept, before)), before) != now:
        raise InvalidConfiguration(
            f"{file} has changed since", f"Edit it by hand, then remove the original: `rm {kept}`."
        )
    return before


def _kept(file: Path) -> Path:
    return file.with_name(file.name + _BEFORE)


def _put(file: Path, before: str, after: str, *, undo: bool) -> None:
    if not undo:
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
