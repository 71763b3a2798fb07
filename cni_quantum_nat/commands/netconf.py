"""Check a CNI configuration file that contains, or should contain, quantum-nat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..cni.protocol import VERSIONS, network_name
from ..model.errors import InvalidConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cni.explain import Problem
    from .jsonfile import Path

ERROR, WARNING = "error", "warning"
OURS = "quantum-nat"
INTERFACE_PLUGINS = ("bridge", "ptp", "ipvlan", "macvlan", "vlan", "host-device", "dummy", "tap")
_CNI_KEYS = (
    "type", "name", "cniVersion", "ipam", "dns", "args", "runtimeConfig", "prevResult", "capabilities", "disableCheck",
)  # fmt: skip
_SIMILAR = 0.75  # difflib's ratio: "masquarade" is similar to a key, "mtu" is not


class Finding(NamedTuple):
    """A problem at a path in the file. severity: ERROR or WARNING."""

    path: Path
    severity: str
    message: str


def check(configuration: Any, suffix: str) -> Iterator[Finding]:
    """Yield the problems of a configuration. suffix: of the file name, which decides whether runtimes read it as a list."""
    if not isinstance(configuration, dict):
        yield Finding((), ERROR, "not a JSON object; put it into { }")
        return
    yield from _check_network(configuration)
    if "plugins" in configuration or suffix == ".conflist":
        if suffix in (".conf", ".json"):
            yield Finding(
                ("plugins",), ERROR, f"runtimes read a {suffix} file as a single plugin; rename it to end in .conflist"
            )
        yield from _check_list(configuration)
    else:
        yield from _check_single(configuration)


def _check_network(configuration: dict[str, Any]) -> Iterator[Finding]:
    version = configuration.get("cniVersion")
    if version not in VERSIONS:
        problem = "missing" if "cniVersion" not in configuration else f"unsupported version {version!r}"
        yield Finding(("cniVersion",), ERROR, f"{problem}; use one of {', '.join(VERSIONS)}")
    try:
        network_name(configuration)
    except InvalidConfiguration as error:
        yield Finding(("name",), ERROR, error.message)


def _check_single(plugin: dict[str, Any]) -> Iterator[Finding]:
    if not isinstance(plugin.get("type"), str):
        yield Finding(("type",), ERROR, "missing type; add one, or write a list with plugins to a .conflist file")
    elif plugin["type"] != OURS:
        yield Finding(
            ("type",), WARNING, f"this is {plugin['type']!r}, not {OURS}; only the keys of CNI itself were checked"
        )
    else:
        yield Finding(
            ("type",),
            WARNING,
            f"ADD fails, as {OURS} needs an interface; put it into a list, after the plugin that creates one",
        )
        yield from _check_ours(plugin, ())


def _check_list(configuration: dict[str, Any]) -> Iterator[Finding]:
    plugins = configuration.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        yield Finding(("plugins",), ERROR, "not a list with at least one plugin; add the plugins in order")
        return
    named: list[tuple[int, dict[str, Any]]] = []
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, dict) and isinstance(plugin.get("type"), str) and plugin["type"]:
            named.append((index, plugin))
        else:
            yield Finding(("plugins", index), ERROR, 'not an object with a type; write {"type": "NAME", ...}')
    ours = [(index, plugin) for index, plugin in named if plugin["type"] == OURS]
    if not ours:
        yield _missing(named)
        return
    for index, _ in ours[1:]:
        yield Finding(("plugins", index), ERROR, f"{OURS} is in the list twice; remove this one")
    index, plugin = ours[0]
    yield from _check_ours(plugin, ("plugins", index))
    yield from _check_order(named, index)
    for position, other in named:
        yield from _check_other(other, ("plugins", position), plugin)


def _missing(named: list[tuple[int, dict[str, Any]]]) -> Finding:
    for index, plugin in named:
        if plugin["type"] == "portmap":
            return Finding(
                ("plugins", index, "type"),
                WARNING,
                f"no plugin has type {OURS}, and portmap publishes the ports; change this type to {OURS}. If portmap is a "
                f"link to {OURS}, check a changed copy of this file",
            )
    return Finding(("plugins",), WARNING, f"no plugin has type {OURS}; add it after the one that creates the interface")


def _check_order(named: list[tuple[int, dict[str, Any]]], ours: int) -> Iterator[Finding]:
    later = [(index, plugin["type"]) for index, plugin in named if index > ours and plugin["type"] in INTERFACE_PLUGINS]
    if later:
        yield Finding(
            ("plugins", ours), ERROR, f"{OURS} is before {later[0][1]}, which creates the interface; move it after that"
        )
    elif not any(index < ours for index, _ in named):
        yield Finding(
            ("plugins", ours),
            ERROR,
            f"no plugin before {OURS} creates an interface; put one before it, such as bridge or ptp",
        )


def _check_other(other: dict[str, Any], path: Path, ours: dict[str, Any]) -> Iterator[Finding]:
    kind = other["type"]
    if masquerades(other, ours):
        yield Finding((*path, "ipMasq"), WARNING, f"both {kind} and {OURS} masquerade; remove ipMasq")
    if kind == "bridge" and other.get("hairpinMode") is not True:
        yield Finding(
            (*path, "hairpinMode"),
            WARNING,
            'a container cannot reach itself through its own published port; add "hairpinMode": true',
        )
    if kind == "portmap":
        both = _takes_ports(ours) and _takes_ports(other)
        yield Finding(
            (*path, "type"), ERROR if both else WARNING, f"both portmap and {OURS} publish ports; remove portmap"
        )


def masquerades(other: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Return whether another plugin of the list masquerades what ours masquerades too."""
    return (
        other["type"] in ("bridge", "ptp") and other.get("ipMasq") is True and ours.get("masquerade", True) is not False
    )


def _takes_ports(plugin: dict[str, Any]) -> bool:
    capabilities = plugin.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


def _check_ours(plugin: dict[str, Any], path: Path) -> Iterator[Finding]:
    from ..cni.configuration import NatConfig  # pydantic: 70 ms, which completions do without

    for problem in _problems_of(plugin):
        yield Finding((*path, *problem.path), ERROR, problem.message)
    capabilities = plugin.get("capabilities", {})
    if isinstance(capabilities, dict) and capabilities.get("portMappings") in (None, False):
        yield Finding(
            (*path, "capabilities"),
            WARNING,
            'the runtime does not pass on published ports; add "capabilities": {"portMappings": true}',
        )
    known = {str(field.alias) for field in NatConfig.model_fields.values()}
    yield from _check_spelling(plugin, path, {*known, *_CNI_KEYS})


def _check_spelling(plugin: dict[str, Any], path: Path, known: set[str]) -> Iterator[Finding]:
    from difflib import get_close_matches

    by_lower_case = {key.lower(): key for key in sorted(known)}
    for key in plugin:
        similar = get_close_matches(key.replace("_", "").lower(), by_lower_case, n=1, cutoff=_SIMILAR)
        if key not in known and similar:
            meant = by_lower_case[similar[0]]
            yield Finding((*path, key), WARNING, f"unknown key, which is ignored; did you mean {meant}?")


def _problems_of(configuration: dict[str, Any]) -> list[Problem]:
    """Return the problems for which ADD would refuse this configuration."""
    # pydantic: only `validate` needs it
    from pydantic import ValidationError

    from ..cni.configuration import validated
    from ..cni.explain import Problem, explain
    from ..cni.settings import state_of

    problems = []
    try:
        validated(configuration)
    except ValidationError as error:
        problems = explain(error, configuration)
    if not any(problem.path[:1] == ("stateDir",) for problem in problems):
        try:
            state_of(configuration)
        except InvalidConfiguration as error:
            problems.append(Problem(("stateDir",), error.message))
    return problems
