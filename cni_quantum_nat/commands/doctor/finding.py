"""The findings and remarks of checks."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """A problem. where: what has the problem. problem: the cause and its effect. remedy: what to do, a command if possible.

    certain: False where doctor cannot tell whether this is a problem: the check's result is then "unknown".
    """

    where: str
    problem: str
    remedy: str
    certain: bool = True


class Remark(NamedTuple):
    """What is worth knowing about a check that found no problem."""

    text: str
