"""A command of the plugin, run by a user who is not root and has no capability."""

from __future__ import annotations

import stat
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# A checkout below /root is out of that user's reach: in a mount namespace of its own it is below a directory that anyone may enter.
_SCRIPT = """
project=$1 closed=$2
shift 2
cd /
if [ -n "$closed" ]; then
    mkdir -p /run/checkout
    mount --bind "$project" /run/checkout
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$project"
    mount --bind /run/checkout "$project"
fi
exec setpriv --reuid=65534 --clear-groups --bounding-set=-all "$@"
"""


def unprivileged(command: list[str]) -> list[str]:
    """Return how root runs it as such a user."""
    above = reversed(PROJECT.parents)
    closed = next((str(path) for path in above if not path.stat().st_mode & stat.S_IXOTH), "")
    return ["unshare", "--mount", "sh", "-euc", _SCRIPT, "sh", str(PROJECT), closed, *command]
