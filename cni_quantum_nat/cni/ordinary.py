"""Check an ordinary configuration without pydantic. No I/O.

The first call with a configuration checks it, and a pod waits for that: pydantic takes a hundred times as long, in a program that has to
be started for it. What is not certain to be valid is left to the model in configuration.py, which also says what is wrong; a test
compares both.
"""

from __future__ import annotations

from ..model.attachments import BY_CLIENT, SPREAD
from ..model.filters import is_interface_name, parse_interfaces, parse_sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LAST_PORT = 65535
LAST_TIMEOUT_S = 2147483
LAST_MARK_BIT = 31
# Defaults of net.netfilter.nf_conntrack_udp_timeout and nf_conntrack_udp_timeout_stream. A `ct timeout` object always has both.
KERNELS_UDP_TIMEOUT_S, KERNELS_UDP_STREAM_TIMEOUT_S = 30, 120
# How the values of words are written in settings.
FAMILIES = {True: [4, 6], False: [], "ipv4": [4], "ipv6": [6]}
SHARING = {"none": SPREAD, "client": BY_CLIENT}
_CHAIN_MAX = 28
_CHAIN_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-")


def _is_boolean(value: object) -> bool:
    return value is True or value is False


def _is_text(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _is_one_of(*words: str) -> Callable[[object], bool]:
    return lambda value: type(value) is str and value in words


def _is_number(first: int, last: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and first <= value <= last


def _is_interface(value: object) -> bool:
    return _is_text(value) and is_interface_name(str(value))


def _are_interfaces(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and "default" not in value and all(map(_is_interface, value))
    return _is_interface(value)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_interface, value))


def _are_sources(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    try:
        parse_sources(value)
    except ValueError:
        return False
    return True


def _is_range(value: object) -> bool:
    if type(value) is not str:
        return False
    first, _, last = value.partition("-")
    digits = first.isdecimal() and last.isdecimal() and value.isascii() and len(value) <= len("32768-60999")
    return digits and 1 <= int(first) <= int(last) <= LAST_PORT


def _are_ports(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number(1, LAST_PORT), value))


def _is_chain(value: object) -> bool:
    return (
        type(value) is str
        and 1 <= len(value) <= _CHAIN_MAX
        and value[0] not in ".:-"
        and _CHAIN_CHARACTERS.issuperset(value)
    )


def _is_empty(value: object) -> bool:
    return value == [] and isinstance(value, list)


def _are_flags(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_boolean, value.values()))


# By key: the default, and whether a value is certain to be valid. Addresses and conditions are not ordinary: the model checks them.
KEYS: dict[str, tuple[Any, Callable[[object], bool]]] = {
    "backend": ("nftables", _is_one_of("nftables", "iptables")),
    "ipForwarding": (True, _is_boolean),
    "masquerade": (True, lambda value: _is_boolean(value) or value in ("ipv4", "ipv6")),
    "noMasqueradeTo": ([], _is_empty),
    "externalInterface": (None, _are_interfaces),
    "snatAddress": ([], _is_empty),
    "portRange": ("32768-60999", _is_range),
    "hostPortConflict": ("refuse", _is_one_of("refuse", "allow")),
    "sharedPorts": ([], _are_ports),
    "sharedAffinity": ("none", _is_one_of(*SHARING)),
    "conntrackTimeout": (3600, _is_number(1, LAST_TIMEOUT_S)),
    "udpTimeout": (None, _is_number(1, LAST_TIMEOUT_S)),
    "udpStreamTimeout": (None, _is_number(1, LAST_TIMEOUT_S)),
    "ipv6Localhost": (False, _is_boolean),
    "isolate": (False, _is_boolean),
    "snat": (True, _is_boolean),
    "masqAll": (False, _is_boolean),
    "markMasqBit": (None, _is_number(0, LAST_MARK_BIT)),
    "externalSetMarkChain": (None, _is_chain),
    "allowFrom": (None, _are_sources),
    "publishOn": (None, _are_names),
    "conditionsV4": ([], _is_empty),
    "conditionsV6": ([], _is_empty),
    "metrics": (True, _is_boolean),
    "stateDir": ("/run/cni/quantum-nat", _is_text),
    "capabilities": ({}, _are_flags),
}
_NOT_IPTABLES = {"conntrackTimeout", "udpTimeout", "udpStreamTimeout", "allowFrom", "publishOn"}
_SPELLING = frozenset(key.lower() for key in KEYS)


def normalised(configuration: dict[str, Any]) -> dict[str, Any] | None:
    """Return the form that Settings reads; None if only the model can tell whether the configuration is valid."""
    given = {key: value for key, value in configuration.items() if value is not None}
    if any(key not in KEYS and key.lower() in _SPELLING for key in configuration):
        return None
    if not all(KEYS[key][1](value) for key, value in given.items() if key in KEYS):
        return None
    config = {key: given.get(key, default) for key, (default, _) in KEYS.items()}
    if not _is_consistent(config, given):
        return None
    interfaces = config["externalInterface"] or []
    return {
        "backend": config["backend"],
        "ipForwarding": config["ipForwarding"],
        "masquerade": FAMILIES[config["masquerade"]],
        "noMasqueradeTo": [],
        "externalInterface": [interfaces] if isinstance(interfaces, str) else interfaces,
        "snatAddress": [],
        "portRange": [int(port) for port in config["portRange"].split("-")],
        "refuseConflicts": config["hostPortConflict"] == "refuse",
        "sharedPorts": config["sharedPorts"],
        "sharing": SHARING[config["sharedAffinity"]],
        "conntrackTimeout": config["conntrackTimeout"],
        "udpTimeouts": udp_timeouts(config["udpTimeout"], config["udpStreamTimeout"]),
        "ipv6Localhost": config["ipv6Localhost"],
        "isolate": config["isolate"],
        "allowFrom": [str(subnet) for subnet in parse_sources(config["allowFrom"] or ())],
        "publishOn": list(parse_interfaces(config["publishOn"] or ())),
        "conditions": {},
        "snat": config["snat"],
        "masqAll": config["masqAll"],
        "markMasqBit": config["markMasqBit"],
        "externalSetMarkChain": config["externalSetMarkChain"] or "",
    }


def udp_timeouts(unreplied_s: int | None, stream_s: int | None) -> list[int]:
    """Return both time-outs if one is set, or none."""
    if unreplied_s is None and stream_s is None:
        return []
    return [unreplied_s or KERNELS_UDP_TIMEOUT_S, stream_s or KERNELS_UDP_STREAM_TIMEOUT_S]


def _is_consistent(config: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether keys are certain to go together, and with the backend."""
    if config["backend"] == "nftables":
        return "externalSetMarkChain" not in given
    foreign = config["sharedPorts"] or config["ipv6Localhost"] or not _NOT_IPTABLES.isdisjoint(given)
    both = config["markMasqBit"] is not None and config["externalSetMarkChain"] is not None
    interfaces = config["externalInterface"] or ""
    wild = any(name.endswith("+") for name in ([interfaces] if isinstance(interfaces, str) else interfaces))
    return not (foreign or both or wild)
