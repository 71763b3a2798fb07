"""The state directories that a command is about: the one that is named, or all that installed networks use."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cni.settings import state_of
from ..model.errors import IO_FAILURE, CniError, InvalidConfiguration
from ..state.directory import DEFAULT_DIRECTORY, State
from .netconf import OURS
from .tables import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

VARIABLE = "QUANTUM_NAT_STATE_DIR"
SUFFIXES = (".conflist", ".conf", ".json")  # what runtimes read
_ROOT = Path("/etc/cni/net.d")
_CONTAINERS_CONF = (  # podman's, the later one wins
    "/usr/share/containers/containers.conf",
    "/etc/containers/containers.conf",
    "~/.config/containers/containers.conf",
)


def settle(arguments: argparse.Namespace) -> None:
    """Set `state_dirs` to all state directories that the command may be about, and `state_dir` to the first of them.

    That is the one of --state-dir or $QUANTUM_NAT_STATE_DIR; without them, the usual one, and those that the installed
    networks name. The first is the usual one if it exists, or if no other does.
    """
    named = arguments.state_dir or os.environ.get(VARIABLE)
    arguments.is_named = bool(named)
    if named:
        # The marks on the rules come from the spelling: `/run/x/` is the plugin's `/run/x`.
        arguments.state_dirs = [os.path.abspath(named)]
    else:
        others = [name for name in in_use() if name != DEFAULT_DIRECTORY and State(name).exists()]
        is_usual = State(DEFAULT_DIRECTORY).exists() or not others
        arguments.state_dirs = [DEFAULT_DIRECTORY, *others] if is_usual else others
    arguments.state_dir = arguments.state_dirs[0]


def states_of(arguments: argparse.Namespace) -> list[State]:
    """Return all state directories that the command is about; raise CniError(7) if it names one that does not exist."""
    states = [State(name) for name in arguments.state_dirs]
    for state in states:
        state.check()
    if arguments.is_named and not states[0].exists():
        raise missing(states[0])
    return states


def mention_others(arguments: argparse.Namespace) -> None:
    """Say on standard error which state directories a command that takes one leaves out."""
    for name in arguments.state_dirs[1:]:
        print(
            f"quantum-nat: networks of this host also use the state directory {name}. "
            f"For those, run `quantum-nat --state-dir {name} {arguments.command}`.",
            file=sys.stderr,
        )


def missing(state: State) -> InvalidConfiguration:
    """Say that there is no such state directory, and which there are."""
    others = [name for name in dict.fromkeys((DEFAULT_DIRECTORY, *in_use())) if State(name).exists()]
    known = f"This host has {', '.join(others)}." if others else "If nothing was ever added, there is nothing to do."
    return InvalidConfiguration(
        f"there is no state directory {state.directory}",
        f"If the networks have another stateDir, name it: quantum-nat --state-dir DIRECTORY. {known}",
    )


def in_use() -> list[str]:
    """Return the state directories that installed networks name, sorted; print files that cannot be read."""
    unreadable: list[CniError] = []
    found = sorted(named_by(_installed(), unreadable))
    complain(unreadable)
    return found


def named_by(files: Iterable[Path], unreadable: list[CniError]) -> dict[str, list[str]]:
    """Return the files by the state directory that their networks use; for what cannot be read, add to `unreadable`."""
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            configuration = json.loads(file.read_bytes())
            states = {state_of(plugin).directory for plugin in _ours(configuration)}
        except (OSError, ValueError, RecursionError, CniError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            unreadable.append(
                CniError(
                    IO_FAILURE,
                    f"cannot tell which state directory {file} names: {why}",
                    f"Check it with `quantum-nat validate {file}`.",
                )
            )
            continue
        for name in sorted(states):
            found.setdefault(name, []).append(str(file))
    return found


def configurations_in(directory: Path) -> list[Path]:
    """Return the network configurations in a directory, as runtimes read it: not in those below."""
    try:
        return sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # the runtime that it belongs to is not installed, or not this user's


def _ours(configuration: Any) -> Iterator[dict[str, Any]]:
    if isinstance(configuration, dict):
        plugins = configuration.get("plugins", [configuration])
        for plugin in plugins if isinstance(plugins, list) else ():
            if isinstance(plugin, dict) and plugin.get("type") == OURS:
                yield plugin


def _installed() -> Iterator[Path]:
    for directory in dict.fromkeys(_places()):
        yield from configurations_in(directory)


def _places() -> Iterator[Path]:
    yield _ROOT
    try:
        yield from sorted(path for path in _ROOT.iterdir() if path.is_dir())  # nerdctl's, one for each namespace
    except (FileNotFoundError, PermissionError):
        pass
    yield from map(Path, filter(None, os.environ.get("NETCONFPATH", "").split(":")))
    yield Path("/var/lib/rancher/k3s/agent/etc/cni/net.d")
    yield _expanded("~/.config/cni/net.d")  # podman and nerdctl without root
    configured = [name for file in _CONTAINERS_CONF if (name := _podmans(_expanded(file)))]
    yield from map(Path, configured[-1:])


def _expanded(name: str) -> Path:
    """Return the path with ~ replaced; where nobody has a home directory, one that does not exist."""
    return Path(os.path.expanduser(name))  # pathlib raises RuntimeError there


def _podmans(file: Path) -> str:
    try:
        name = tomllib.loads(file.read_text()).get("network", {}).get("network_config_dir", "")
    except (OSError, ValueError, AttributeError):
        return ""  # podman is not installed, or says itself what is wrong with its file
    return name if isinstance(name, str) else ""
