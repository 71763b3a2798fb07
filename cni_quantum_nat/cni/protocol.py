"""The CNI protocol: environment and standard input in, one JSON object on standard output out (specification 0.1.0 to 1.1.0).

A pod's start waits for this module.
"""

from __future__ import annotations

import posix

from ..kernel.namespaces import directory_of, identity, is_namespace, own_namespace
from ..model.addresses import Endpoint
from ..model.attachments import AttachmentId
from ..model.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_NAMESPACE,
    CniError,
    InvalidConfiguration,
    InvalidEnvironment,
)
from ..model.json_text import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = "1.1.0"
_WITHOUT_LIST_OF_IPS = ("0.1.0", "0.2.0")  # the result has ip4 and ip6 instead
_FIRST_VERSION_OF = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_WITHOUT_IP_VERSION = ("1.0.0", "1.1.0")

_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_NAME_MAX_BYTES = 200  # names become file names, with a suffix
_INTERFACE_MAX_BYTES = 15
_MOST_INPUT_BYTES = 1 << 24  # four times what 28,000 port mappings, or as many attachments for GC, take


class Environment:
    """The CNI_* variables; `netns` is empty if the runtime no longer has a namespace."""

    __slots__ = ("command", "container_id", "interface", "netns")

    def __init__(self, command: str, container_id: str, interface: str, netns: str) -> None:
        self.command = command
        self.container_id = container_id
        self.interface = interface
        self.netns = netns


def read_environment() -> Environment:
    """Read and check the CNI_* variables; raise CniError(4), which lists all that are missing."""
    command = _variable("CNI_COMMAND")
    if command not in _REQUIRED:
        raise InvalidEnvironment(f"CNI_COMMAND is {command!r}, not one of {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED[command] if not _variable(name)]
    if missing:
        raise InvalidEnvironment(f"{command} needs {', '.join(missing)} in the environment")
    environment = Environment(command, _variable("CNI_CONTAINERID"), _variable("CNI_IFNAME"), _variable("CNI_NETNS"))
    if command in ("ADD", "CHECK", "DEL"):
        _check_name("CNI_CONTAINERID", environment.container_id)
        _check_interface(environment.interface)
    return environment


def _variable(name: str) -> str:
    value = posix.environ.get(name.encode(), b"")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidEnvironment(f"{name} is not UTF-8: {value!r}") from error


def is_valid_name(text: str) -> bool:
    """Return whether a network or container may have this name, in records, file names and comments."""
    return text[:1].isalnum() and _NAME_CHARACTERS.issuperset(text) and len(text) <= _NAME_MAX_BYTES


def _check_name(variable: str, value: str) -> None:
    if not is_valid_name(value):
        raise InvalidEnvironment(
            f"{variable} is {value!r}: it must begin with a letter or digit and contain only letters, digits, "
            f"'_', '.' and '-', at most {_NAME_MAX_BYTES} characters"
        )


def _check_interface(name: str) -> None:
    forbidden = name in (".", "..") or any(character in "/:" or character.isspace() for character in name)
    if forbidden or not name.isprintable() or len(name.encode()) > _INTERFACE_MAX_BYTES:
        raise InvalidEnvironment(
            f"CNI_IFNAME is {name!r}: it must be 1 to {_INTERFACE_MAX_BYTES} bytes without '/', ':' or white space, "
            "and not '.' or '..'"
        )


class Namespace:
    """The container's network namespace: its path, the identity of the file there, and that of its directory."""

    __slots__ = ("directory", "identity", "path")

    def __init__(self, path: str, found: tuple[int, int], directory: tuple[int, int]) -> None:
        self.path = path
        self.identity = found
        self.directory = directory


def find_namespace(environment: Environment) -> Namespace:
    """Return the container's network namespace.

    Raises:
        CniError: (4) there is no such namespace; (8) it is the plugin's own.
    """
    path = environment.netns
    found = identity(path)
    if found is None:
        raise InvalidEnvironment(f"CNI_NETNS is {path!r}: no such network namespace")
    if not is_namespace(found):
        raise InvalidEnvironment(
            f"CNI_NETNS is {path!r}: not a network namespace in this mount namespace",
            "Run the plugin in the mount namespace where the runtime mounts its network namespaces.",
        )
    if found == own_namespace() and _variable("CNI_NETNS_OVERRIDE").lower() not in ("true", "1"):
        raise CniError(
            INVALID_NAMESPACE,
            f"CNI_NETNS {path!r} is the plugin's own network namespace",
            "Give the container its own namespace, or set CNI_NETNS_OVERRIDE=true.",
        )
    return Namespace(path, found, directory_of(path))


def read_standard_input() -> bytes:
    """Read standard input to its end; raise CniError(6) if there is too much."""
    chunks = []
    size = 0
    while chunk := posix.read(0, 1 << 16):
        size += len(chunk)
        if size > _MOST_INPUT_BYTES:
            raise CniError(DECODING_FAILURE, f"standard input has more than {_MOST_INPUT_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


_decoded: list[tuple[bytes, object]] = []  # the last input: with 28,000 port mappings, to decode it takes 20 ms


def _decode(raw: bytes) -> object:
    if not _decoded or _decoded[0][0] is not raw:
        _decoded[:] = [(raw, loads(raw.decode()))]
    return _decoded[0][1]


def parse_configuration(raw: bytes) -> dict[str, Any]:
    """Decode the network configuration; raise CniError(6) if it is not a JSON object."""
    try:
        configuration = _decode(raw)
    except ValueError as error:
        raise CniError(DECODING_FAILURE, f"the network configuration on stdin is not JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise CniError(DECODING_FAILURE, "the network configuration on stdin is not a JSON object")
    return configuration


def version_of(raw: bytes) -> str:
    """Return the version for the answer: the configuration's if it can be read and is supported, else the latest.

    As in libcni, a missing or empty cniVersion is 0.1.0.
    """
    try:
        configuration = _decode(raw)
    except ValueError:
        return LATEST
    if not isinstance(configuration, dict):
        return LATEST
    version = configuration.get("cniVersion")
    if version in (None, ""):
        return VERSIONS[0]
    return version if version in VERSIONS else LATEST


def check_version(configuration: dict[str, Any], command: str) -> None:
    """Check the version; raise CniError(1) if it is not supported, or older than the command.

    DEL accepts any version: libcni stops at the first plugin that fails, and would leave behind what the others made.
    """
    given = configuration.get("cniVersion")
    version = VERSIONS[0] if given in (None, "") else given
    if version not in VERSIONS:
        if command == "DEL":
            return
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion is {given!r}, not one of {', '.join(VERSIONS)}")
    first = _FIRST_VERSION_OF.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(first):
        raise CniError(INCOMPATIBLE_VERSION, f"{command} needs cniVersion {first} or newer, this is {version}")


def network_name(configuration: dict[str, Any]) -> str:
    """Return the network's name; raise CniError(7) if it is missing or invalid."""
    name = configuration.get("name")
    if not isinstance(name, str) or not is_valid_name(name):
        raise InvalidConfiguration(
            f"name is {name!r}: a network's name must begin with a letter or digit and contain only letters, digits, "
            f"'_', '.' and '-', at most {_NAME_MAX_BYTES} characters"
        )
    return name


def attachment_id(environment: Environment, configuration: dict[str, Any]) -> AttachmentId:
    """Return the ID of this call's attachment."""
    return AttachmentId(network_name(configuration), environment.container_id, environment.interface)


def previous_result(configuration: dict[str, Any], command: str) -> dict[str, Any]:
    """Return prevResult; raise CniError(7) if there is none."""
    result = configuration.get("prevResult")
    if result is None:
        raise InvalidConfiguration(
            f"{command} needs prevResult: quantum-nat is a chained plugin",
            "In the list's plugins, put it after the one that creates the interface (bridge, ptp, ipvlan).",
        )
    if not isinstance(result, dict):
        raise InvalidConfiguration(f"prevResult is {_kind(result)}, not an object")
    return result


def endpoints_of(result: dict[str, Any], interface: str) -> list[Endpoint]:
    """Return the container's addresses: the `ips` on its interface or without one; before 0.3.0, `ip4` and `ip6`."""
    interfaces = _objects(result, "interfaces")
    endpoints = []
    for number, entry in enumerate(_objects(result, "ips")):
        if _is_on(entry.get("interface"), interfaces, interface):
            endpoints.append(_endpoint(f"ips[{number}].address", entry.get("address")))
    for key in ("ip4", "ip6") if "ips" not in result else ():
        of_family = result.get(key)
        if isinstance(of_family, dict):
            endpoints.append(_endpoint(f"{key}.ip", of_family.get("ip")))
    return endpoints


def _endpoint(where: str, address: object) -> Endpoint:
    try:
        if not isinstance(address, str):
            raise ValueError(f"it is {_kind(address)}, not a string")  # noqa: TRY004 - one way to be wrong
        return Endpoint.parse(address)
    except ValueError as error:
        raise InvalidConfiguration(f"prevResult.{where}: {error}") from error


def _objects(result: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = result.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidConfiguration(f"prevResult.{key} is not a list of objects")
    return entries


def _is_on(index: object, interfaces: list[dict[str, Any]], name: str) -> bool:
    """Return whether an address with this interface index is the container's; an invalid index counts as none."""
    if not isinstance(index, int) or not 0 <= index < len(interfaces):
        return True
    return bool(interfaces[index].get("sandbox")) and interfaces[index].get("name") == name


def _kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def result_in_version(result: dict[str, Any], version: str) -> dict[str, Any]:
    """Return prevResult in the format of this version, with all other keys kept.

    Before 1.0.0 each address has a `version`; since then it has none. Before 0.3.0 there are other keys.
    """
    if version in _WITHOUT_LIST_OF_IPS:
        return result
    converted = {**result, "cniVersion": version}
    if isinstance(result.get("ips"), list):
        converted["ips"] = [_address_in_version(entry, version) for entry in result["ips"]]
    return converted


def _address_in_version(entry: dict[str, Any], version: str) -> dict[str, Any]:
    if version in _WITHOUT_IP_VERSION:
        return {key: value for key, value in entry.items() if key != "version"}
    if "version" in entry:
        return entry
    return {"version": "6" if ":" in str(entry.get("address")) else "4", **entry}


def valid_attachments(configuration: dict[str, Any]) -> set[tuple[str, str]] | None:
    """Return (container ID, interface) of the attachments that GC must keep; None if the runtime gives no list."""
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if key in configuration:
            entries = configuration[key]
            if not isinstance(entries, list | None):
                raise InvalidConfiguration(f"{key} is {_kind(entries)}, not a list")
            return {_valid_attachment(key, entry) for entry in entries or ()}
    return None


def _valid_attachment(key: str, entry: object) -> tuple[str, str]:
    if isinstance(entry, dict):
        container_id, interface = entry.get("containerID"), entry.get("ifname")
        if isinstance(container_id, str) and isinstance(interface, str):
            return container_id, interface
    raise InvalidConfiguration(f"{key} has an entry without containerID and ifname: {dumps(entry)}")


def version_report(raw: bytes) -> dict[str, object]:
    """Return the answer to VERSION, in the version of the request if it is supported."""
    try:
        configuration = loads(raw.decode()) if raw.strip() else {}
    except ValueError:
        configuration = {}  # some runtimes send no valid JSON; the answer does not depend on it
    asked = configuration.get("cniVersion") if isinstance(configuration, dict) else None
    return {"cniVersion": asked if asked in VERSIONS else LATEST, "supportedVersions": list(VERSIONS)}


def encode_result(result: dict[str, Any]) -> bytes:
    """Return a result or an error as it is printed."""
    return dumps(result).encode() + b"\n"


def print_result(content: bytes) -> None:
    """Write an encoded result to standard output."""
    while content:
        content = content[posix.write(1, content) :]
