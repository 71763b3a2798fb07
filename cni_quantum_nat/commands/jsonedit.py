"""Change a JSON text only where its value changes: what somebody wrote by hand keeps its lines, its order and its spaces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from .jsonfile import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .jsonfile import Document, Path

_WHITE_SPACE = " \t\n\r"


class _Edit(NamedTuple):
    """Replace the text between two offsets."""

    start: int
    end: int
    text: str


def edited(text: str, value: Any) -> str:
    """Return the text of another value. New members and items are written like those beside them.

    Raises: SyntaxProblem if the text is not JSON.
    """
    document = decode(text)
    for edit in sorted(_changes(document, (), document.value, value), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _changes(document: Document, path: Path, old: Any, new: Any) -> Iterator[_Edit]:
    if _is_same(old, new):
        return
    if isinstance(old, dict) and isinstance(new, dict) and old and new:
        yield from _changes_of_members(document, path, old, new)
    elif isinstance(old, list) and isinstance(new, list) and old and new:
        yield from _changes_of_items(document, path, old, new)
    else:
        yield _Edit(*document.spans[path], _one_line(new))


def _is_same(old: Any, new: Any) -> bool:
    """Return whether both are written alike; true and 1 are equal, but not the same."""
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _changes_of_members(
    document: Document, path: Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[_Edit]:
    children = _Children(document, path, list(old))
    kept = [index for index, key in enumerate(old) if key in new]
    added = [key for key in new if key not in old]
    if not kept:
        yield _Edit(*document.spans[path], _one_line(new))
        return
    for key in old:
        if key in new:
            yield from _changes(document, (*path, key), old[key], new[key])
    yield from children.removals(kept)
    written = [f"{_one_line(key)}{children.colon}{children.written(new[key])}" for key in added]
    yield from children.insertions(len(old), written)


def _changes_of_items(document: Document, path: Path, old: Sequence[Any], new: Sequence[Any]) -> Iterator[_Edit]:
    children = _Children(document, path, range(len(old)))
    shorter = min(len(old), len(new))
    same = [_is_same(before, after) for before, after in zip(old, new, strict=False)]
    prefix = same.index(False) if False in same else shorter
    backwards = [_is_same(old[-1 - index], new[-1 - index]) for index in range(shorter - prefix)]
    suffix = backwards.index(False) if False in backwards else len(backwards)
    paired = shorter - prefix - suffix
    for index in range(prefix, prefix + paired):
        yield from _changes(document, (*path, index), old[index], new[index])
    end_of_pairs = prefix + paired
    yield from children.removals([*range(end_of_pairs), *range(len(old) - suffix, len(old))])
    added = new[end_of_pairs : len(new) - suffix]
    yield from children.insertions(end_of_pairs, [children.written(item) for item in added])


class _Children:
    """The members or items of an object or a list that is not empty, in the order of the text."""

    def __init__(self, document: Document, path: Path, names: Sequence[str] | range) -> None:
        self._document = document
        self._paths: list[Path] = [(*path, name) for name in names]
        self._starts = [document.offsets[child] for child in self._paths]
        self._ends = [document.spans[child][1] for child in self._paths]

    @property
    def colon(self) -> str:
        """What is between a key and its value."""
        text, start = self._document.text, self._document.spans[self._paths[0]][0]
        return text[text.rindex(":", 0, start) : start]

    @property
    def _gap(self) -> str:
        """The white space between a comma and what follows it."""
        gap = _white_space_before(self._document.text, self._starts[-1])
        return gap if gap or len(self._starts) > 1 else " "

    def removals(self, kept: Sequence[int]) -> Iterator[_Edit]:
        """Remove all but these, of which there is at least one, each with one comma."""
        if kept[0] > 0:
            yield _Edit(self._starts[0], self._starts[kept[0]], "")
        for index in range(kept[0] + 1, len(self._starts)):
            if index not in kept:
                yield _Edit(self._ends[index - 1], self._ends[index], "")

    def insertions(self, index: int, texts: Sequence[str]) -> Iterator[_Edit]:
        """Insert before the child with this index, or after the last one."""
        if texts and index > 0:
            at = self._ends[index - 1]
            yield _Edit(at, at, "".join(f",{self._gap}{text}" for text in texts))
        elif texts:
            yield _Edit(self._starts[0], self._starts[0], "".join(f"{text},{self._gap}" for text in texts))

    def written(self, value: Any) -> str:
        """Return the text of a value: an object is on lines of its own if an object beside it is."""
        pattern = self._expanded()
        if pattern is None or not isinstance(value, dict) or not value:
            return _one_line(value)
        before, between, after = pattern
        members = f",{between}".join(f"{_one_line(key)}: {_one_line(member)}" for key, member in value.items())
        return f"{{{before}{members}{after}}}"

    def _expanded(self) -> tuple[str, str, str] | None:
        """Return the white space after {, after a comma and before } of an object here that has several lines."""
        text = self._document.text
        for child in self._paths:
            start, end = self._document.spans[child]
            first = start + 1 + len(text[start + 1 : end]) - len(text[start + 1 : end].lstrip(_WHITE_SPACE))
            if text[start] == "{" and "\n" in (before := text[start + 1 : first]):
                return before, before, _white_space_before(text, end - 1)
        return None


def _white_space_before(text: str, offset: int) -> str:
    return text[len(text[:offset].rstrip(_WHITE_SPACE)) : offset]


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
