"""A pytest plugin that writes tables of the results: a row for each behaviour, a column for each subject.

A test that is parametrized over `subject` fills one row, named by the first line of its docstring, or its own name. A cell is
`pass`, `FAIL`, `differs` (marked as such, and confirmed), or `-` (the subject lacks the feature: left out, or skipped). A note
below the table explains the last two. Modules with the same heading in TABLE share a table, and so do those without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSED, FAILED, DIFFERS, NOT_TRIED = "pass", "FAIL", "differs", "-"
_WORST_FIRST = (FAILED, DIFFERS, NOT_TRIED, PASSED)
PREFACE = pytest.StashKey[list[str]]()  # lines before the tables, set by a conftest


@dataclass
class Table:
    """Cells by row and column, in order of arrival, and the reasons of those that need one."""

    columns: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def enter(self, row: str, column: str, outcome: str, reason: str = "") -> None:
        """Fill a cell; if several tests share it, it shows the worst result."""
        if column not in self.columns:
            self.columns.append(column)
        cells = self.rows.setdefault(row, {})
        before = cells.get(column, PASSED).partition(" ")[0]
        if _WORST_FIRST.index(before) < _WORST_FIRST.index(outcome):
            return
        cells[column] = f"{outcome} {self._footnote(reason)}" if reason else outcome

    def _footnote(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"[{self.reasons.index(reason) + 1}]"

    def lines(self) -> Iterator[str]:
        """Yield the table in Markdown, in columns of equal width."""
        rows = [
            [name, *(cells.get(column, "") for column in self.columns)] for name, cells in self.rows.items() if cells
        ]
        grid = [["behaviour", *self.columns], *rows]
        widths = [max(len(row[at]) for row in grid) for at in range(len(grid[0]))]
        for number, row in enumerate(grid):
            yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
            if number == 0:
                yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
        for number, reason in enumerate(self.reasons, 1):
            yield ""
            yield f"[{number}] {reason}"


_TABLES = pytest.StashKey[dict[str, Table]]()
_NOTES = pytest.StashKey[list[str]]()


def note(config: pytest.Config, text: str) -> None:
    """Add a note below all tables."""
    config.stash[_NOTES].append(text)


def leave_out(config: pytest.Config, items: list[pytest.Item], reasons: dict[pytest.Item, str]) -> None:
    """Deselect tests for features that their subjects lack; the reasons go into the table."""
    for item in items:
        table = _table_of(item)
        table.rows.setdefault(_row(item), {})  # keeps the order of the tests
        if item in reasons:
            table.enter(_row(item), _column(item), NOT_TRIED, reasons[item])
    items[:] = [item for item in items if item not in reasons]
    config.hook.pytest_deselected(items=list(reasons))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", metavar="FILE", help="write the table into this Markdown file too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLES] = {}
    config.stash[_NOTES] = []
    config.addinivalue_line(
        "markers",
        "differs(subject, why, **as of xfail): the assertions fail for this subject, by design or by a fault of it",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the differences: a test fails if its difference has gone."""
    for item in items:
        for mark in item.iter_markers("differs"):
            subject, why = mark.args
            if subject == _column(item):
                item.add_marker(pytest.mark.xfail(reason=why, **{"strict": True, **mark.kwargs}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    column = _column(item)
    if column and (report.when == "call" or not report.passed):
        _table_of(item).enter(_row(item), column, *_cell(report))
    return report  # type: ignore[return-value]


def _table_of(item: pytest.Item) -> Table:
    heading = getattr(item.module, "TABLE", "") if isinstance(item, pytest.Function) else ""
    return item.config.stash[_TABLES].setdefault(heading, Table())


def _cell(report: pytest.TestReport) -> tuple[str, str]:
    """Return the text of the cell, and its reason."""
    if report.skipped and hasattr(report, "wasxfail"):
        return DIFFERS, report.wasxfail
    if report.skipped:
        return NOT_TRIED, str(report.longrepr[2]).removeprefix("Skipped: ")  # type: ignore[index]
    return (PASSED if report.passed else FAILED), ""


def _column(item: pytest.Item) -> str:
    """Return the subject's name; "" for a test without one."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return str(parameters.get("subject", ""))


def _row(item: pytest.Item) -> str:
    if not isinstance(item, pytest.Function):
        return item.name
    documentation = (item.obj.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return documentation or item.originalname.removeprefix("test_").replace("_", " ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tables = config.stash[_TABLES]
    if not tables:
        return
    for heading, table in tables.items():
        terminalreporter.write_line(f"\n{heading}" if heading else "")
        for line in table.lines():
            terminalreporter.write_line(line)
    terminalreporter.write_line("\n".join(_notes(config)))
    if path := config.getoption("--table"):
        (config.rootpath / path).write_text("\n".join(_document(config)) + "\n")


def _document(config: pytest.Config) -> Iterator[str]:
    yield from config.stash.get(PREFACE, [])
    for heading, table in config.stash[_TABLES].items():
        yield from ("", f"## {heading}", "") if heading else ("",)
        yield from table.lines()
    yield from _notes(config)


def _notes(config: pytest.Config) -> list[str]:
    notes = config.stash[_NOTES]
    return ["", "; ".join(notes)] if notes else []
