"""JSON that knows where each key and value stands, for messages that point there.

Python's own decoder tells positions of syntax errors only, and takes a key that stands twice without a word.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined] # has been there since 2.6
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_DEEPEST = 64


class Unreadable(Exception):
    """The text is no JSON; `offset` says where it ceases to be."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Located(NamedTuple):
    """A value, with the offset of its first character; members of an object by key, with the offsets of the keys.

    repeated: keys that stand twice in the object, with the offset of the second one; the last value counts.
    """

    value: Any
    offset: int
    members: dict[str, tuple[int, Located]]
    items: list[Located]
    repeated: list[tuple[str, int]]

    def all_repeated(self) -> Iterator[tuple[str, int]]:
        """Yield the keys that stand twice, here and below."""
        yield from self.repeated
        for inner in [*(member for _, member in self.members.values()), *self.items]:
            yield from inner.all_repeated()


def read_located(text: str) -> Located:
    """Read a JSON text; Unreadable with what is wrong and where."""
    located, end = _read(text, _skip(text, 0), 0)
    end = _skip(text, end)
    if end != len(text):
        raise Unreadable("there is something after the end of the value", end)
    return located


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Return where an offset is, both from 1."""
    before = text[:offset]
    return before.count("\n") + 1, offset - before.rfind("\n")


def _read(text: str, at: int, depth: int) -> tuple[Located, int]:
    if depth > _DEEPEST:
        raise Unreadable(f"it is nested more than {_DEEPEST} deep", at)
    first = text[at : at + 1]
    if first == "{":
        return _read_object(text, at, depth)
    if first == "[":
        return _read_array(text, at, depth)
    if first == '"':
        value, end = _read_string(text, at)
        return Located(value, at, {}, [], []), end
    scalar = _SCALAR.match(text, at)
    if scalar is None:
        raise Unreadable("there should be a value", at)
    try:
        return Located(json.loads(scalar[0]), at, {}, [], []), scalar.end()
    except ValueError as error:  # a number of thousands of digits
        raise Unreadable(str(error), at) from error


def _read_object(text: str, at: int, depth: int) -> tuple[Located, int]:
    members: dict[str, tuple[int, Located]] = {}
    repeated = []
    end = _skip(text, at + 1)
    while text[end : end + 1] != "}":
        if members:
            end = _expect(text, end, ",", "'}' or ','")
        key_at = end
        if text[end : end + 1] != '"':
            raise Unreadable("there should be a key in double quotes", end)
        key, end = _read_string(text, end)
        value, end = _read(text, _expect(text, _skip(text, end), ":", "':'"), depth + 1)
        if key in members:
            repeated.append((key, key_at))
        members[key] = (key_at, value)
        end = _skip(text, end)
    content = {key: member.value for key, (_, member) in members.items()}
    return Located(content, at, members, [], repeated), end + 1


def _read_array(text: str, at: int, depth: int) -> tuple[Located, int]:
    items: list[Located] = []
    end = _skip(text, at + 1)
    while text[end : end + 1] != "]":
        if items:
            end = _expect(text, end, ",", "']' or ','")
        item, end = _read(text, end, depth + 1)
        items.append(item)
        end = _skip(text, end)
    return Located([item.value for item in items], at, {}, items, []), end + 1


def _read_string(text: str, at: int) -> tuple[str, int]:
    try:
        value, end = scanstring(text, at + 1, True)
    except json.JSONDecodeError as error:
        raise Unreadable(error.msg, error.pos) from error
    return str(value), int(end)


def _expect(text: str, at: int, character: str, named: str) -> int:
    if text[at : at + 1] != character:
        raise Unreadable(f"there should be {named}", at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
