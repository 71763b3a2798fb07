"""The values of a network configuration that are accepted, and that one configuration is validated only once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat.cni.configuration import normalise
from cni_quantum_nat.cni.settings import state_of
from cni_quantum_nat.model.errors import CniError

DEFAULTS = {
    "ipForwarding": True,
    "masquerade": [4, 6],
    "noMasqueradeTo": [],
    "externalInterface": [],
    "snatAddress": [],
    "snat": True,
    "masqAll": False,
    "backend": "nftables",
    "portRange": [32768, 60999],
    "refuseConflicts": True,
    "sharedPorts": [],
    "sharing": "spread",
    "conntrackTimeout": 3600,
    "udpTimeouts": [],
    "allowFrom": [],
    "publishOn": [],
    "ipv6Localhost": False,
    "isolate": False,
    "conditions": {},
    "markMasqBit": None,
    "externalSetMarkChain": "",
}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"udpTimeout": 60}, {"udpTimeouts": [60, 120]}),
        ({"allowFrom": ["192.0.2.0/24", "192.0.2.9", "::/0"]}, {"allowFrom": ["192.0.2.0/24", "::/1", "8000::/1"]}),
        ({"publishOn": ["eth1", "lo", "eth1"]}, {"publishOn": ["eth1", "lo"]}),
        ({"udpStreamTimeout": 600}, {"udpTimeouts": [30, 600]}),
        ({"udpTimeout": 60, "udpStreamTimeout": 600}, {"udpTimeouts": [60, 600]}),
        ({}, {}),
        ({"ipam": {"type": "host-local"}, "someday": 5}, {}),
        ({"masquerade": False}, {"masquerade": []}),
        ({"masquerade": "ipv4"}, {"masquerade": [4]}),
        ({"masquerade": "ipv6"}, {"masquerade": [6]}),
        ({"externalInterface": "eth0"}, {"externalInterface": ["eth0"]}),
        ({"externalInterface": "default"}, {"externalInterface": ["default"]}),
        ({"externalInterface": ["eth0", "wlan0"]}, {"externalInterface": ["eth0", "wlan0"]}),
        ({"snatAddress": "192.0.2.1"}, {"snatAddress": ["192.0.2.1"]}),
        ({"snatAddress": ["192.0.2.1", "2001:DB8::1"]}, {"snatAddress": ["192.0.2.1", "2001:db8::1"]}),
        (
            {"snat": False, "masqAll": True, "ipForwarding": False},
            {"snat": False, "masqAll": True, "ipForwarding": False},
        ),
        ({"backend": "nftables", "capabilities": {"portMappings": True}}, {}),
        ({"noMasqueradeTo": ["10.0.0.0/8", "FD00::/8"]}, {"noMasqueradeTo": ["10.0.0.0/8", "fd00::/8"]}),
        ({"snat": None, "portRange": None, "markMasqBit": None, "someday": None}, {}),
    ],
)
def test_valid_values_are_accepted(given: dict[str, Any], changed: dict[str, Any]) -> None:
    assert normalise(given) == {**DEFAULTS, **changed}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"masquerade": "yes"}, 'masquerade is \'yes\': it must be true, false, "ipv4" or "ipv6"'),
        ({"masquerade": 1}, "masquerade is 1"),
        ({"ipForwarding": "true"}, "ipForwarding is 'true': it must be true or false"),
        ({"externalInterface": "a/b"}, "externalInterface is 'a/b'"),
        ({"externalInterface": "a" * 16}, "is not an interface name"),
        ({"externalInterface": []}, "name at least one interface"),
        ({"externalInterface": ["default", "eth0"]}, '"default" cannot be in a list'),
        ({"snatAddress": ["192.0.2.1", "192.0.2.2"]}, "two addresses of the same family"),
        ({"snatAddress": "127.0.0.1"}, "cannot be a source address"),
        ({"snatAddress": "host"}, "'host' is not an IP address"),
        ({"snatAddress": "2001:db8::1", "masquerade": "ipv4"}, "of a family that is not masqueraded"),
        ({"backend": "ebtables"}, "backend is 'ebtables'"),
        ({"capabilities": {"portMappings": "yes"}}, "capabilities is"),
        ({"noMasqueradeTo": "10.0.0.0/8"}, "noMasqueradeTo is '10.0.0.0/8'"),
        ({"noMasqueradeTo": ["10.0.0.1/8"]}, "'10.0.0.1/8' is not a network CIDR"),
        ({"noMasqueradeTo": ["0.0.0.0/0"]}, '0.0.0.0/0 is every address: say "masquerade": false instead'),
        ({"Snat": False}, "Snat"),
        ({"conditionsv4": ["tcp dport 80"]}, "conditionsv4"),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_allowed_values(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CniError) as caught:
        normalise(given)
    assert caught.value.code == 7
    assert said in caught.value.message


def test_all_invalid_keys_are_reported() -> None:
    with pytest.raises(CniError) as caught:
        normalise({"snat": 0, "masqAll": "x"})
    assert "snat is 0" in caught.value.message
    assert "masqAll is 'x'" in caught.value.message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "iptables", "sharedPorts": [80]}, 'sharedPorts is not supported by backend "iptables"'),
        ({"backend": "iptables", "conntrackTimeout": 60}, "conntrackTimeout is not supported"),
        ({"backend": "iptables", "udpTimeout": 60}, 'udpTimeout is not supported by backend "iptables"'),
        ({"backend": "iptables", "udpStreamTimeout": 60}, "udpStreamTimeout is not supported"),
        ({"backend": "iptables", "ipv6Localhost": True}, "ipv6Localhost is not supported"),
        ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, "externalSetMarkChain is not supported"),
        ({"backend": "iptables", "markMasqBit": 1, "externalSetMarkChain": "X"}, "cannot be combined"),
        ({"backend": "iptables", "externalSetMarkChain": "-j"}, "externalSetMarkChain is '-j'"),
        ({"conditionsV4": ["-s", "10.0.0.1"]}, 'conditionsV4 is in iptables syntax, but backend is "nftables"'),
        ({"conditionsV6": ["ip6 saddr ::1 drop"]}, "'drop' is not part of a match expression"),
        ({"markMasqBit": 32}, "markMasqBit is 32"),
        ({"sharedPorts": [0]}, "sharedPorts is [0]"),
        ({"sharedAffinity": "ip"}, "sharedAffinity is 'ip'"),
        ({"hostPortConflict": "ignore"}, "hostPortConflict is 'ignore'"),
        ({"conntrackTimeout": 0}, "conntrackTimeout is 0"),
        ({"allowFrom": []}, "allowFrom is []: it must be a list of at least one network CIDR or address"),
        ({"allowFrom": "192.0.2.0/24"}, "allowFrom is '192.0.2.0/24'"),
        ({"allowFrom": ["192.0.2.1/24"]}, "has bits beyond its prefix: write 192.0.2.0/24"),
        ({"allowFrom": ["localhost"]}, "'localhost' is not an IP address"),
        ({"publishOn": []}, "publishOn is []: it must be a list of at least one interface name"),
        ({"publishOn": ["eth*"]}, "'eth*' is not an interface name"),
        ({"backend": "iptables", "allowFrom": ["192.0.2.0/24"]}, "allowFrom is not supported by backend"),
        ({"backend": "iptables", "publishOn": ["eth1"]}, "publishOn is not supported by backend"),
        ({"udpTimeout": 0}, "udpTimeout is 0: it must be a number of seconds, 1 to 2147483"),
        ({"udpStreamTimeout": "60"}, "udpStreamTimeout is '60'"),
    ],
)
def test_conflicting_keys_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CniError) as caught:
        normalise(given)
    assert caught.value.code == 7
    assert said in caught.value.message


@pytest.mark.parametrize("directory", ["state", "", 5, "/run/../etc", "/a\0b"])
def test_a_state_directory_must_be_an_absolute_path(directory: object) -> None:
    with pytest.raises(CniError, match="stateDir is") as caught:
        state_of({"stateDir": directory})
    assert caught.value.code == 7


READ_SETTINGS = """
import sys
from cni_quantum_nat.cni.settings import read_settings, state_of

configuration = {"stateDir": sys.argv[1], "masquerade": sys.argv[2], "prevResult": sys.argv[3]}
state = state_of(configuration)
state.lock()
settings = read_settings(configuration, state, "net", print)
print(settings.masquerade, "cni_quantum_nat.cni.ordinary" in sys.modules)
"""


def test_an_unchanged_configuration_is_not_checked_again(tmp_path: Path) -> None:
    def read(masquerade: str, result: str) -> str:
        line = [sys.executable, "-c", READ_SETTINGS, str(tmp_path / "state"), masquerade, result]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    assert read("ipv4", "first") == "(4,) True"
    assert read("ipv4", "second") == "(4,) False"
    assert read("ipv6", "third") == "(6,) True"
