"""What is wrong with a network configuration file: of ours by NatConfig, around it by what CNI asks and what makes traffic fail."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from ..hotpath.protocol import VERSIONS, is_valid_name
from ..slowpath.config import NatConfig, problems_of
from .positions import Unreadable, read_located

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .positions import Located

ERROR, WARNING = "error", "warning"
OUR_TYPE = "quantum-nat"
_OUR_KEYS = [str(field.alias) for field in NatConfig.model_fields.values()]
_CNI_KEYS = {"cniVersion", "name", "type", "args", "ipam", "dns", "prevResult", "runtimeConfig", "disableCheck"}


class Problem(NamedTuple):
    """One thing that is wrong. offset: where, in characters from the start. path: the key, as plugins[1].snat."""

    offset: int
    path: str
    severity: str
    message: str


def problems_in(text: str) -> list[Problem]:
    """Return everything that is wrong with the text of a conf or conflist file, in its order."""
    try:
        root = read_located(text)
    except Unreadable as error:
        return [Problem(error.offset, "", ERROR, f"this is not JSON: {error}")]
    repeated = [
        Problem(at, key, ERROR, "the key stands twice; only the last one counts") for key, at in root.all_repeated()
    ]
    return sorted([*repeated, *_problems_of_root(root)])


def _problems_of_root(root: Located) -> Iterator[Problem]:
    if not isinstance(root.value, dict):
        yield Problem(root.offset, "", ERROR, "this is not a JSON object")
        return
    yield from _problems_of_header(root)
    if "plugins" in root.members:
        yield from _problems_of_list(*root.members["plugins"])
    elif root.value.get("type") == OUR_TYPE:
        yield from _problems_of_ours(root, "")
    else:
        yield Problem(root.offset, "", WARNING, f'there is neither a list "plugins" nor a type "{OUR_TYPE}"')


def _problems_of_header(root: Located) -> Iterator[Problem]:
    version_at, version = _member(root, "cniVersion")
    if version is None or version not in VERSIONS:
        said = "it is missing" if version is None else f"it is {version!r}"
        yield Problem(version_at, "cniVersion", ERROR, f"{said}: it must be one of {', '.join(VERSIONS)}")
    name_at, name = _member(root, "name")
    if not isinstance(name, str) or not is_valid_name(name):
        said = "it is missing" if name is None else f"it is {name!r}"
        yield Problem(
            name_at, "name", ERROR, f"{said}: a name is letters, digits, '_', '.' and '-', no '_', '.' or '-' first"
        )


def _member(located: Located, key: str) -> tuple[int, object]:
    at, member = located.members.get(key, (located.offset, None))
    return at, None if member is None else member.value


def _problems_of_list(at: int, plugins: Located) -> Iterator[Problem]:
    entries = [item for item in plugins.items if isinstance(item.value, dict)]
    if not plugins.items or len(entries) != len(plugins.items):
        yield Problem(at, "plugins", ERROR, "it must be a list of objects, at least one")
        return
    types = [item.value.get("type") for item in entries]
    ours = [number for number, kind in enumerate(types) if kind == OUR_TYPE]
    for number, kind in enumerate(types):
        if not isinstance(kind, str) or not kind:
            yield Problem(entries[number].offset, f"plugins[{number}].type", ERROR, "each plugin needs a type")
    if not ours:
        yield Problem(at, "plugins", WARNING, f'none of them is "{OUR_TYPE}"')
        return
    yield from _problems_beside_ours(entries, ours)
    for number in ours:
        yield from _problems_of_ours(entries[number], f"plugins[{number}].")


def _problems_beside_ours(entries: list[Located], ours: list[int]) -> Iterator[Problem]:
    if ours[0] == 0:
        yield Problem(
            entries[0].offset,
            "plugins[0]",
            ERROR,
            "it stands first: it must come after the plugin that makes the interface",
        )
    for number in ours[1:]:
        yield Problem(entries[number].offset, f"plugins[{number}]", ERROR, f'"{OUR_TYPE}" stands twice in the list')
    for number, entry in enumerate(entries):
        path = f"plugins[{number}]"
        if entry.value.get("type") == "portmap":
            yield Problem(
                entry.offset, path, ERROR, f'portmap publishes the same ports: remove it, "{OUR_TYPE}" is in its place'
            )
        if entry.value.get("type") == "bridge":
            yield from _problems_of_bridge(entry, path)


def _problems_of_bridge(entry: Located, path: str) -> Iterator[Problem]:
    at, masquerades = _member(entry, "ipMasq")
    if masquerades is True:
        yield Problem(at, f"{path}.ipMasq", WARNING, f'bridge masquerades as well: remove it, "{OUR_TYPE}" does')
    at, hairpin = _member(entry, "hairpinMode")
    if hairpin is not True:
        said = "without it a container may not reach itself through its own host port"
        yield Problem(at, f"{path}.hairpinMode", WARNING, f"it should be true: {said}")


def _problems_of_ours(entry: Located, path: str) -> Iterator[Problem]:
    for key, message in problems_of(entry.value).items():
        at, _ = _member(entry, key)
        yield Problem(at, path + key if key else path.rstrip("."), ERROR, message)
    directory_at, directory = _member(entry, "stateDir")
    if isinstance(directory, str) and (not directory.startswith("/") or ".." in directory):
        yield Problem(
            directory_at, f"{path}stateDir", ERROR, f"stateDir is {directory!r}, not an absolute path without '..'"
        )
    capabilities = entry.value.get("capabilities")
    if not isinstance(capabilities, dict) or not capabilities.get("portMappings"):
        said = 'without {"portMappings": true} in it the runtime passes no port mappings'
        yield Problem(entry.offset, f"{path}capabilities", WARNING, said)
    yield from _misspelled(entry, path)


def _misspelled(entry: Located, path: str) -> Iterator[Problem]:
    for key, (at, _) in entry.members.items():
        if key in _OUR_KEYS or key in _CNI_KEYS or key.startswith("cni.dev/"):
            continue
        similar = get_close_matches(key.lower(), [known.lower() for known in _OUR_KEYS], 1, cutoff=0.75)
        if similar:
            meant = next(known for known in _OUR_KEYS if known.lower() == similar[0])
            yield Problem(at, path + key, WARNING, f"this key is ignored: {meant} is meant, perhaps")
