"""The measured samples, and their medians with quartiles. No I/O."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MILLISECONDS = "ms"
PER_SECOND = "1/s"
MORE_IS_BETTER = (PER_SECOND, "MiB/s")


class Key(NamedTuple):
    """The quantity of a sample.

    section: the part of the benchmark. what: the call or the quantity. containers: the number of existing ones.
    variant: of the request, such as "1 port".
    """

    section: str
    what: str
    contender: str
    containers: int = 0
    variant: str = ""
    unit: str = MILLISECONDS


class Figure(NamedTuple):
    """A median with its quartiles, and the number of runs."""

    key: Key
    median: float
    q1: float
    q3: float
    runs: int

    def as_json(self) -> dict[str, object]:
        return {
            **self.key._asdict(),
            "median": round(self.median, 3),
            "q1": round(self.q1, 3),
            "q3": round(self.q3, 3),
            "runs": self.runs,
        }

    @classmethod
    def from_json(cls, content: dict[str, object]) -> Figure:
        """Return the figure from its JSON form; raise KeyError if something is missing."""
        key = Key(*(content[name] for name in Key._fields))  # type: ignore[arg-type]
        return cls(key, *(content[name] for name in cls._fields[1:]))  # type: ignore[arg-type]


class Samples:
    """All samples, in order of measurement."""

    def __init__(self) -> None:
        self._values: dict[Key, list[float]] = {}

    def add(self, key: Key, value: float) -> None:
        self._values.setdefault(key, []).append(value)

    def values(self, key: Key) -> list[float]:
        return self._values.get(key, [])

    def keys(self) -> Iterator[Key]:
        return iter(list(self._values))

    def figures(self) -> Figures:
        """Return the medians and quartiles."""
        return Figures(summarise(key, values) for key, values in self._values.items())


def summarise(key: Key, values: list[float]) -> Figure:
    """Return the median and the quartiles; for a single value all three are equal."""
    if len(values) == 1:
        return Figure(key, values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(key, median, q1, q3, len(values))


def sum_with_extra(base: list[float], extra: list[float], plain: list[float]) -> list[float]:
    """Return, for each round, base + (extra - plain)."""
    return [b + e - p for b, e, p in zip(base, extra, plain, strict=False)]


class Figures:
    """Figures, by key."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._figures = {figure.key: figure for figure in figures}

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())

    def __len__(self) -> int:
        return len(self._figures)

    def get(self, key: Key) -> Figure | None:
        return self._figures.get(key)

    def median(self, key: Key) -> float | None:
        """Return the median; None if it was not measured."""
        figure = self._figures.get(key)
        return figure.median if figure else None

    def best(self, keys: Iterable[Key]) -> Figure | None:
        """Return the best of several figures; None if none was measured."""
        found = [figure for key in keys if (figure := self._figures.get(key))]
        if not found:
            return None
        sign = -1 if found[0].key.unit in MORE_IS_BETTER else 1
        return min(found, key=lambda figure: sign * figure.median)

    def ratio(self, key: Key, others: Iterable[Key]) -> float | None:
        """Return the ratio of the median to the best of the others; None if one was not measured."""
        ours, best = self._figures.get(key), self.best(others)
        return ours.median / best.median if ours and best and best.median else None
