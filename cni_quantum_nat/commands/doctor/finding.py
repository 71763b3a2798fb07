"""What a check may find."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """where: the thing that is wrong. problem: what is wrong with it, and what follows. remedy: what to do, a command if there is one."""

    where: str
    problem: str
    remedy: str
