"""Run a call in this process without a kernel, and check its answer and the commands that the kernel would get."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

from cni_quantum_nat.backends.iptables.rules import plan_rules as plan_iptables
from cni_quantum_nat.backends.nftables.rules import plan_rules
from cni_quantum_nat.backends.nftables.text import elements_text
from cni_quantum_nat.cni import entry, protocol
from cni_quantum_nat.nat.manager import NatManager
from cni_quantum_nat.state import counters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_quantum_nat.model.attachments import Attachment
    from cni_quantum_nat.model.settings import Settings

DEFECT = 199
_FIELD = r'(?:[0-9a-f.:]+|tcp|udp|sctp|\d+(?:/\d+)?|"[^"\n]*")'
_KEY = rf"{_FIELD}(?: \. {_FIELD}|/\d+)*"
_ELEMENT = rf'{_KEY} comment "[^"\n]*"(?: : (?:(?:jump|goto) [a-z0-9_]+|{_KEY}))?'
_COMMAND = re.compile(rf"add element inet quantum [a-z0-9_]+ \{{ {_ELEMENT}(?:, {_ELEMENT})* \}}")


class _Planner(NatManager):
    """Formats what the kernel would get, as text for nft or iptables-restore, and checks it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def add(self, attachment: Attachment, settings: Settings) -> None:  # noqa: ARG002
        for number, mapping in enumerate(attachment.port_mappings):
            mapping.host_port = mapping.host_port or 32768 + number
        for command in elements_text(plan_rules(attachment)):
            if not _COMMAND.fullmatch(command):
                raise AssertionError(f"syntax for nft: {command!r}")
        for rule in (rule for family in (4, 6) for rule in plan_iptables(attachment, family)):
            _check_line(rule.line(), attachment.inbound.conditions)

    def check(self, attachment: Attachment, *, follows_default_route: bool = False) -> None:  # noqa: ARG002
        self.add(attachment, None)  # type: ignore[arg-type]

    def remove(self, _id: object, fallback: Any = None) -> None:
        if fallback is not None:
            fallback()

    def collect_garbage(self, *_: object) -> None:
        return None

    def require_backend(self, _name: str) -> None:
        return None


def _check_line(line: str, conditions: object) -> None:
    """Check that it is one line of words, with a comment of one word and one target."""
    words = re.sub(r'"(?:[^"\\]|\\.)*"', "a comment", line).split()
    targets = sum(word in ("-j", "--jump", "-g", "--goto") for word in words)
    if any(c in line for c in "\n\0") or '"' in words or (targets != 1 and not conditions):
        raise AssertionError(f"syntax for iptables: {line!r}")


def call(environment: dict[bytes, bytes], raw: bytes) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit status, and what was printed."""
    printed: list[dict[str, Any]] = []
    with _instead(environment, raw, printed):
        return entry.run(), printed


@contextmanager
def _instead(environment: dict[bytes, bytes], raw: bytes, printed: list[dict[str, Any]]) -> Iterator[None]:
    with (
        patch("posix.environ", environment),
        patch.object(protocol, "read_standard_input", lambda: raw),
        patch.object(protocol, "print_result", lambda content: printed.append(json.loads(content))),
        patch.object(entry, "NatManager", _Planner),
        patch.object(entry, "counter_of", lambda *_: None),
        patch.object(counters, "warn", lambda _: None),
        patch("cni_quantum_nat.state.directory.State.write_configuration", lambda *_: None),
    ):
        yield


def assert_is_an_answer(status: int, printed: list[dict[str, Any]]) -> None:
    """Check that it is one object, an error object if the status is 1, and not an internal error."""
    if len(printed) > 1 or (status and not printed):
        raise AssertionError(f"{len(printed)} answers: {printed}")
    if status and not (isinstance(printed[0].get("code"), int) and printed[0].get("msg")):
        raise AssertionError(f"no error object: {printed}")
    if status not in (0, 1) or (status and printed[0]["code"] == DEFECT):
        raise AssertionError(f"internal error: {printed}")
