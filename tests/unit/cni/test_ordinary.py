"""The check without pydantic, compared with the model: what it accepts the model accepts too, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from cni_quantum_nat.cni import ordinary
from cni_quantum_nat.cni.configuration import NatConfig, normalise
from cni_quantum_nat.model.errors import CniError

LEFT_TO_THE_MODEL = ("noMasqueradeTo", "snatAddress", "conditionsV4", "conditionsV6")

# What people write, what is at a limit, and any JSON.
WORDS = [
    "nftables",
    "iptables",
    "ipv4",
    "ipv6",
    "refuse",
    "allow",
    "none",
    "client",
    "default",
    "eth0",
    "eth0+",
    "br-1.5",
    "a" * 15,
    "a" * 16,
]
WORDS += [
    "",
    ".",
    "..",
    "a/b",
    'a"b',
    "a b",
    "\ud800",
    "ä" * 7,
    "ä" * 8,
    "1-65535",
    "32768-60999",
    "2-1",
    "0-1",
    "1-65536",
    "1-2-3",
    "\u0661-\u0662",
    "-1-2",
]
WORDS += ["KUBE-MARK-MASQ", "-A", "a:b", "c" * 28, "c" * 29, "a\n", "192.0.2.1", "10.0.0.0/8", "tcp", "/run/x"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 31, 32, 3600, 65535, 65536, 2147483, 2147484, -1, 1.0, 0.5]),
    st.sampled_from(WORDS),
    st.integers(),
    st.text(st.characters()),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
FITTING = {
    "backend": st.sampled_from(["nftables", "iptables"]),
    "masquerade": st.sampled_from([True, False, "ipv4", "ipv6"]),
    "externalInterface": st.sampled_from(["eth0", "default", "eth0+", ["eth0"], ["eth0", "wg0+"]]),
    "portRange": st.sampled_from(["32768-60999", "1-1"]),
    "hostPortConflict": st.sampled_from(["refuse", "allow"]),
    "sharedPorts": st.lists(st.integers(1, 65535), max_size=3),
    "sharedAffinity": st.sampled_from(["none", "client"]),
    "conntrackTimeout": st.integers(1, 2147483),
    "udpTimeout": st.integers(1, 2147483),
    "udpStreamTimeout": st.integers(1, 2147483),
    "allowFrom": st.lists(st.sampled_from(["192.0.2.0/24", "192.0.2.7", "::/0", "2001:db8::/32"]), min_size=1),
    "publishOn": st.lists(st.sampled_from(["eth0", "lo", "eth0+"]), min_size=1),
    "markMasqBit": st.integers(0, 31),
    "externalSetMarkChain": st.sampled_from(["KUBE-MARK-MASQ", "c" * 28]),
    "stateDir": st.text(max_size=5),
    "capabilities": st.dictionaries(st.text(max_size=3), st.booleans(), max_size=2),
}
FITTING |= {key: st.booleans() for key in ("ipForwarding", "ipv6Localhost", "isolate", "snat", "masqAll", "metrics")}
FITTING |= {key: st.just([]) for key in LEFT_TO_THE_MODEL}
KEYS = [*ordinary.KEYS, "name", "type", "MASQUERADE", "statedir", "masq_all"]
CONFIGURATIONS = st.one_of(
    st.fixed_dictionaries({}, optional=FITTING),
    st.fixed_dictionaries({}, optional=FITTING).flatmap(
        lambda valid: st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2).map(lambda other: {**valid, **other})
    ),
)


def by_the_model(configuration: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return normalise(configuration)
    except CniError:
        return None


@settings(max_examples=600, deadline=None)
@given(CONFIGURATIONS)
@example({})
@example({"conntrackTimeout": 3600, "backend": "iptables"})
@example({"allowFrom": ["192.0.2.0/24"], "backend": "iptables"})
@example({"publishOn": ["eth0"], "backend": "iptables"})
@example({"externalSetMarkChain": "KUBE-MARK-MASQ"})
@example({"externalInterface": ["eth0+"], "backend": "iptables"})
def test_both_accept_and_refuse_the_same(configuration: dict[str, Any]) -> None:
    found, expected = ordinary.normalised(configuration), by_the_model(configuration)
    if found is not None:
        assert found == expected
    elif expected is not None:  # the model is asked only for what takes more than a look at the value
        assert is_left_to_the_model(configuration)


def is_left_to_the_model(configuration: dict[str, Any]) -> bool:
    with_zeros = len(str(configuration.get("portRange", ""))) > len("32768-60999")
    return with_zeros or any(configuration.get(key) for key in LEFT_TO_THE_MODEL)


def test_the_keys_and_their_defaults_are_the_models() -> None:
    fields = {
        to_camel(name): field.get_default(call_default_factory=True) for name, field in NatConfig.model_fields.items()
    }
    assert {key: default for key, (default, _) in ordinary.KEYS.items()} == fields
    assert FITTING.keys() == fields.keys()  # a new key is in the property test


@pytest.mark.parametrize("key", LEFT_TO_THE_MODEL)
def test_addresses_and_conditions_are_left_to_the_model(key: str) -> None:
    assert ordinary.normalised({key: ["192.0.2.1"]}) is None
