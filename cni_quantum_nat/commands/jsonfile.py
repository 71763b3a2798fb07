"""Decode JSON and keep the position of each key and item, for messages with line and column.

Python's decoder gives no positions, so this module parses objects and lists; strings and numbers are left to Python's
scanner. It accepts what the plugin accepts: no NaN, no text after the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_DEPTH = 100  # far more than any configuration needs, and far less than Python's stack allows
_WHITE_SPACE = " \t\n\r"
_LITERALS = {"true": True, "false": False, "null": None}

Path = tuple[str | int, ...]


class SyntaxProblem(ValueError):
    """The text is not JSON, at this offset."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class Document(NamedTuple):
    """A decoded value.

    offsets: by path, of the key of a member or of an item. spans: by path, start and end of the value alone. repeated: duplicate keys.
    """

    text: str
    value: Any
    offsets: dict[Path, int]
    spans: dict[Path, tuple[int, int]]
    repeated: list[tuple[Path, int]]

    def position(self, path: Path) -> tuple[int, int]:
        """Return line and column, from 1, of a path, or of the innermost value around it."""
        while path and path not in self.offsets:
            path = path[:-1]
        return line_and_column(self.text, self.offsets[path])


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Return line and column, from 1, of an offset in characters."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def decode(text: str) -> Document:
    """Decode one JSON value; raise SyntaxProblem if the text is not JSON."""
    return _Decoder(text).decode()


class _Decoder:
    def __init__(self, text: str) -> None:
        from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
        from json.scanner import NUMBER_RE

        self._text = text
        self._at = 0
        self._offsets: dict[Path, int] = {}
        self._spans: dict[Path, tuple[int, int]] = {}
        self._repeated: list[tuple[Path, int]] = []
        self._scan_string: Callable[[str, int, bool], tuple[str, int]] = scanstring
        self._match_number = NUMBER_RE.match

    def decode(self) -> Document:
        self._skip_white_space()
        self._offsets[()] = self._at
        value = self._value(())
        self._skip_white_space()
        if self._at != len(self._text):
            raise SyntaxProblem("unexpected text after the value", self._at)
        return Document(self._text, value, self._offsets, self._spans, self._repeated)

    def _skip_white_space(self) -> None:
        while self._next in _WHITE_SPACE and self._next:
            self._at += 1

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _value(self, path: Path) -> Any:
        start = self._at
        value = self._read_value(path)
        self._spans[path] = start, self._at
        return value

    def _read_value(self, path: Path) -> Any:
        if len(path) > _MAX_DEPTH:
            raise SyntaxProblem(f"nested more than {_MAX_DEPTH} levels deep", self._at)
        if self._next == "{":
            return self._object(path)
        if self._next == "[":
            return self._list(path)
        if self._next == '"':
            return self._string()
        for literal, value in _LITERALS.items():
            if self._text.startswith(literal, self._at):
                self._at += len(literal)
                return value
        return self._number()

    def _string(self) -> str:
        from json import JSONDecodeError

        try:
            value, self._at = self._scan_string(self._text, self._at + 1, True)
        except JSONDecodeError as error:
            raise SyntaxProblem(error.msg[:1].lower() + error.msg[1:], error.pos) from error
        return value

    def _number(self) -> int | float:
        match = self._match_number(self._text, self._at)
        if match is None:
            raise SyntaxProblem("expected a value", self._at)
        integer, fraction, exponent = match.groups()
        try:
            number = float(match.group()) if fraction or exponent else int(integer)
        except ValueError as error:  # more digits than Python converts
            raise SyntaxProblem("this number is too long", self._at) from error
        self._at = match.end()
        return number

    def _object(self, path: Path) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self._goes_on("}", first=not members):
            if self._next != '"':
                raise SyntaxProblem('expected a key in "double quotes"', self._at)
            start, key = self._at, self._string()
            if key in members:
                self._repeated.append(((*path, key), start))
            self._offsets[*path, key] = start
            self._skip_white_space()
            if self._next != ":":
                raise SyntaxProblem("expected ':' after the key", self._at)
            self._at += 1
            self._skip_white_space()
            members[key] = self._value((*path, key))
        return members

    def _list(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while self._goes_on("]", first=not items):
            item = (*path, len(items))
            self._offsets[item] = self._at
            items.append(self._value(item))
        return items

    def _goes_on(self, end: str, *, first: bool) -> bool:
        """Step to the next member or item; return False at the end."""
        if first:
            self._at += 1
        self._skip_white_space()
        if self._next == end:
            self._at += 1
            return False
        if not first:
            if self._next != ",":
                raise SyntaxProblem(f"expected ',' or '{end}'", self._at)
            comma = self._at
            self._at += 1
            self._skip_white_space()
            if self._next == end:
                raise SyntaxProblem(f"unexpected comma before '{end}'", comma)
        return True
