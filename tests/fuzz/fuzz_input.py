"""A coverage-guided fuzzer of environment and standard input: fuzz_input.py [LIBFUZZER OPTION...] [CORPUS]."""

from __future__ import annotations

import json
import sys

import atheris

with atheris.instrument_imports(include=["cni_quantum_nat"]):
    from tests.fuzz.harness import assert_is_an_answer, call

_VARIABLES = (b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_IFNAME", b"CNI_NETNS", b"CNI_ARGS", b"CNI_PATH")
_SEED = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "quantum-nat",
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::"}]},
    "prevResult": {
        "ips": [{"address": "10.1.2.3/24", "interface": 0}],
        "interfaces": [{"name": "eth0", "sandbox": "x"}],
    },
}


def seed() -> bytes:
    """Return a valid input to start from."""
    values = [b"ADD", b"c1", b"eth0", b"/proc/self/ns/mnt", b"", b"/opt"]
    return b"\0".join([*values, json.dumps(_SEED).encode()])


def one(content: bytes) -> None:
    """Split an input at its first NUL bytes into variables and standard input, and run a call."""
    *values, raw = content.split(b"\0", len(_VARIABLES))
    environment = {name: value for name, value in zip(_VARIABLES, values, strict=False) if value}
    assert_is_an_answer(*call(environment, raw))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
