"""What is wrong with a CNI configuration file that quantum-nat is, or should be, in."""

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
_MAKERS = ("bridge", "ptp", "ipvlan", "macvlan", "vlan", "host-device", "dummy", "tap")  # of the interface
_CNI_KEYS = (
    "type", "name", "cniVersion", "ipam", "dns", "args", "runtimeConfig", "prevResult", "capabilities", "disableCheck",
)  # fmt: skip
_ALIKE = 0.75  # of difflib's ratio: "masquarade" is, "mtu" and "snat" are not


class Finding(NamedTuple):
    """A problem, at a path of the file. severity: ERROR or WARNING."""

    path: Path
    severity: str
    message: str


def check(configuration: Any, suffix: str) -> Iterator[Finding]:
    """Yield what is wrong; suffix: how the file's name ends, which says whether runtimes read it as a list."""
    if not isinstance(configuration, dict):
        yield Finding((), ERROR, "a network configuration is a JSON object; put it into { }")
        return
    yield from _check_network(configuration)
    if "plugins" in configuration or suffix == ".conflist":
        if suffix in (".conf", ".json"):
            yield Finding(
                ("plugins",), ERROR, f"runtimes read {suffix} files as one plugin; end the file's name in .conflist"
            )
        yield from _check_list(configuration)
    else:
        yield from _check_single(configuration)


def _check_network(configuration: dict[str, Any]) -> Iterator[Finding]:
    version = configuration.get("cniVersion")
    if version not in VERSIONS:
        said = "is missing" if "cniVersion" not in configuration else f"is {version!r}"
        yield Finding(("cniVersion",), ERROR, f"it {said}; write one of {', '.join(VERSIONS)}")
    try:
        network_name(configuration)
    except InvalidConfiguration as error:
        yield Finding(("name",), ERROR, error.message)


def _check_single(plugin: dict[str, Any]) -> Iterator[Finding]:
    if not isinstance(plugin.get("type"), str):
        yield Finding(
            ("type",), ERROR, "a plugin needs a type; name it, or write a list with plugins in a .conflist file"
        )
    elif plugin["type"] != OURS:
        yield Finding(
            ("type",), WARNING, f"this is {plugin['type']!r}, not {OURS}; only CNI's own demands were checked"
        )
    else:
        yield Finding(
            ("type",),
            WARNING,
            f"alone, {OURS} has no interface to work on, and ADD fails; put it into a list, after the plugin that makes one",
        )
        yield from _check_ours(plugin, ())


def _check_list(configuration: dict[str, Any]) -> Iterator[Finding]:
    plugins = configuration.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        yield Finding(("plugins",), ERROR, "it must be a list with at least one plugin; add the plugins in their order")
        return
    named: list[tuple[int, dict[str, Any]]] = []
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, dict) and isinstance(plugin.get("type"), str) and plugin["type"]:
            named.append((index, plugin))
        else:
            yield Finding(("plugins", index), ERROR, 'a plugin is an object with a type; write {"type": "NAME", ...}')
    ours = [(index, plugin) for index, plugin in named if plugin["type"] == OURS]
    if not ours:
        yield _nobody(named)
        return
    for index, _ in ours[1:]:
        yield Finding(("plugins", index), ERROR, f"{OURS} is in the list a second time; remove it")
    index, plugin = ours[0]
    yield from _check_ours(plugin, ("plugins", index))
    yield from _check_order(named, index)
    for other, neighbour in named:
        yield from _check_neighbour(neighbour, ("plugins", other), plugin)


def _nobody(named: list[tuple[int, dict[str, Any]]]) -> Finding:
    for index, plugin in named:
        if plugin["type"] == "portmap":
            return Finding(
                ("plugins", index, "type"),
                WARNING,
                f"no plugin is of type {OURS}, and portmap publishes the ports; write {OURS} here, unless the program "
                "portmap is a link to it, and then check a copy that does",
            )
    return Finding(("plugins",), WARNING, f"no plugin is of type {OURS}; add it after the one that makes the interface")


def _check_order(named: list[tuple[int, dict[str, Any]]], ours: int) -> Iterator[Finding]:
    later = [(index, plugin["type"]) for index, plugin in named if index > ours and plugin["type"] in _MAKERS]
    if later:
        yield Finding(
            ("plugins", ours), ERROR, f"{OURS} stands before {later[0][1]}, which makes the interface; move it behind"
        )
    elif not any(index < ours for index, _ in named):
        yield Finding(
            ("plugins", ours),
            ERROR,
            f"no plugin before {OURS} makes an interface; put bridge, ptp or the like before it",
        )


def _check_neighbour(neighbour: dict[str, Any], path: Path, ours: dict[str, Any]) -> Iterator[Finding]:
    kind = neighbour["type"]
    if kind in ("bridge", "ptp") and neighbour.get("ipMasq") is True and ours.get("masquerade", True) is not False:
        yield Finding((*path, "ipMasq"), WARNING, f"{kind} would masquerade as well, and {OURS} does; remove ipMasq")
    if kind == "bridge" and neighbour.get("hairpinMode") is not True:
        yield Finding(
            (*path, "hairpinMode"),
            WARNING,
            'a container does not reach itself through its own published port; add "hairpinMode": true',
        )
    if kind == "portmap":
        both = _takes_ports(ours) and _takes_ports(neighbour)
        yield Finding(
            (*path, "type"), ERROR if both else WARNING, f"portmap and {OURS} would both publish ports; remove portmap"
        )


def _takes_ports(plugin: dict[str, Any]) -> bool:
    capabilities = plugin.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


def _check_ours(plugin: dict[str, Any], path: Path) -> Iterator[Finding]:
    from ..cni.configuration import NatConfig  # pydantic: 70 ms that a shell's completion need not wait for

    for problem in _problems_of(plugin):
        yield Finding((*path, *problem.path), ERROR, problem.message)
    capabilities = plugin.get("capabilities", {})
    if isinstance(capabilities, dict) and capabilities.get("portMappings") in (None, False):
        yield Finding(
            (*path, "capabilities"),
            WARNING,
            'published ports never arrive; add "capabilities": {"portMappings": true}',
        )
    known = {str(field.alias) for field in NatConfig.model_fields.values()}
    yield from _check_spelling(plugin, path, {*known, *_CNI_KEYS})


def _check_spelling(plugin: dict[str, Any], path: Path, known: set[str]) -> Iterator[Finding]:
    from difflib import get_close_matches

    by_lower_case = {key.lower(): key for key in sorted(known)}
    for key in plugin:
        alike = get_close_matches(key.replace("_", "").lower(), by_lower_case, n=1, cutoff=_ALIKE)
        if key not in known and alike:
            meant = by_lower_case[alike[0]]
            yield Finding((*path, key), WARNING, f"this key is not known, and is ignored; did you mean {meant}?")


def _problems_of(configuration: dict[str, Any]) -> list[Problem]:
    """Return what ADD would refuse in this configuration, in its words."""
    # pydantic's weight, for `validate` alone
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
