"""`conformance/faults`: interrupt every call at every system call, and print the results."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from .campaign import Selection, run_scene
from .scenes import SCENES

BACKENDS = ("nftables", "iptables-nft")


def main() -> int:
    """Run the selected scenes; return 1 if a fault caused a problem."""
    parser = argparse.ArgumentParser(prog="conformance/faults", description=__doc__)
    parser.add_argument("--scene", action="append", choices=list(SCENES), help="only this one (may be repeated)")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one (may be repeated)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth fault")
    parser.add_argument("--kills-only", action="store_true", help="only kill, without injecting errors")
    arguments = parser.parse_args()
    selection = Selection(arguments.every, arguments.kills_only)
    problems = total = 0
    print(f"{'BACKEND':14}{'CALL':16}{'FAULTS':>8}{'SURVIVED':>10}{'NOT REACHED':>13}{'PROBLEMS':>10}{'SECONDS':>9}")
    for backend in arguments.backend or BACKENDS:
        for name in arguments.scene or SCENES:
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as directory:
                count = run_scene(name, backend, Path(directory, "scene"), selection)
            took_s = time.monotonic() - started
            total += count.injected
            problems += len(count.problems)
            print(
                f"{backend:14}{name:16}{count.injected:8}{count.survived:10}{count.not_reached:13}"
                f"{len(count.problems):10}{took_s:9.0f}",
                flush=True,
            )
    print(f"{total} faults injected; {problems or 'none'} caused problems")
    return 1 if problems else 0


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sys.exit(main())
