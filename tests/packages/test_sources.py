"""The README's two commands in bare root directories of Debian's releases: they do their own set-up, whatever went before."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .root import RELEASES
from .sources import CHECKOUT, USER, SourceRoot, cut_power, interrupt, stop_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

ADDED_AT_MOST = 600_000_000
SHOWN = "Nothing is left: no element in the kernel, no record, and port 8080 is refused."


@pytest.fixture(params=RELEASES)
def root(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> SourceRoot:
    """Return a bare root directory with a checkout, in a path with a space, without git."""
    made = SourceRoot(request.param, tmp_path, stack)
    made.prepare()
    stack.callback(cut_power, None, made)
    return made


def hang_as_go(root: SourceRoot) -> None:
    """Put a `go` there that waits for its proxy for ever."""
    program = root.path / "usr/local/bin/go"
    program.write_text("#!/bin/sh\nexec sleep infinity\n")
    program.chmod(0o755)


def test_the_quickstart_does_its_own_set_up_and_leaves_nothing_outside_the_checkout(root: SourceRoot) -> None:
    before = root.size()
    hang_as_go(root)
    begin = time.monotonic()
    assert SHOWN in root.succeed("packaging/quickstart")
    print(f"{time.monotonic() - begin:.0f} s, {(root.size() - before) / 1e6:.0f} MB")  # noqa: T201 - pytest -s shows it
    assert root.size() - before <= ADDED_AT_MOST
    assert not list(root.processes())
    assert not root.runs("gcc")
    for directory in ("tmp", "run/netns", "var/lib/cni"):
        assert not list((root.path / directory).glob("*")), directory
    assert {path.name for path in (root.path / "root/.cache").glob("*")} <= {"pip"}


def moments(root: SourceRoot) -> dict[str, Callable[[], bool]]:
    """Return what the quickstart does, step by step, each until it is done."""
    environment = root.inside(CHECKOUT) / ".venv"
    return {
        "apt fetches": lambda: root.runs("http"),
        "dpkg unpacks": lambda: root.runs("dpkg-deb") or root.runs("dpkg"),
        "dpkg configures": lambda: (
            any((root.path / "var/lib/dpkg/info").glob("python3*.postinst")) and root.runs("dpkg")
        ),
        "the environment begins": lambda: (
            (environment / "bin/python").exists() and not (environment / "bin/pip").exists()
        ),
        "pip installs": lambda: any(environment.glob("lib/python3*/site-packages/pydantic*")),
        "containers run": lambda: "publishes its port 80" in (root.path / "tmp/output").read_text(),
    }


@pytest.mark.parametrize("stop", [interrupt, cut_power])
def test_the_quickstart_goes_on_where_it_was_interrupted(root: SourceRoot, stop: Callable[..., None]) -> None:
    for moment, reached in moments(root).items():
        status = stop_at(root, "packaging/quickstart", reached, stop)
        assert status in {130, -2, -9}, f"{moment}: {status}: {(root.path / 'tmp/output').read_text()}"
        assert not list(root.processes()), moment
        assert not list((root.path / "run/netns").glob("*")), moment
    assert SHOWN in root.succeed("packaging/quickstart")


def test_a_user_works_on_after_sudo(root: SourceRoot) -> None:
    root.add_user()
    refused = root.launch("packaging/quickstart", uid=USER)
    assert "sudo packaging/quickstart" in refused.communicate(timeout=60)[0]
    assert SHOWN in root.succeed("packaging/quickstart")
    checkout = root.inside(CHECKOUT)
    assert [path for path in (checkout, *checkout.rglob("*")) if path.lstat().st_uid != USER] == []
    refused = root.launch("packaging/check", uid=USER)
    wanted = re.search(r"sudo (apt-get install .*)", refused.communicate(timeout=60)[0])
    assert wanted
    root.succeed(f"DEBIAN_FRONTEND=noninteractive {wanted[1]} --yes --quiet --no-install-recommends")
    root.succeed("packaging/check", uid=USER)


def test_a_checkout_that_was_moved_or_copied_has_an_environment_of_its_own(root: SourceRoot) -> None:
    root.succeed("packaging/quickstart")
    moved = CHECKOUT.with_name("moved")
    root.inside(CHECKOUT).rename(root.inside(moved))
    assert SHOWN in root.succeed("packaging/quickstart", checkout=moved)
    copied = CHECKOUT.with_name("copied")
    root.succeed(f"cp -a . {copied}", checkout=moved)
    (root.inside(moved) / "cni_quantum_nat").rename(root.inside(moved) / "elsewhere")
    assert SHOWN in root.succeed("packaging/quickstart", checkout=copied)


def test_all_tests_pass(root: SourceRoot) -> None:
    where_root_clones = Path("/root/a checkout")  # nobody else can read there
    root.inside(CHECKOUT).rename(root.inside(where_root_clones))
    output = root.succeed("tests/run", checkout=where_root_clones, timeout_s=7200)
    assert " passed" in output.splitlines()[-1]
