"""Build, rehearse and extend table `inet quantum` through libnftables."""

from __future__ import annotations

import json
import posix
import sys
from typing import TYPE_CHECKING

from ...kernel.stderr import warn
from ...model.conditions import require_conditions
from ...model.errors import NOT_AVAILABLE, CniError, InvalidConfiguration
from ...state.lock import held
from .cover import Cover
from .layout import CORE, DEFAULT_TIMEOUT_S, POLICIES, TABLE, timeout_part
from .table import NftablesTable
from .text import default_parts, elements_text, extension_text, parts_of, policies_text, table_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nftables import Nftables

    from .layout import Policy
    from .rules import Element

_REHEARSAL = f"{TABLE}_rehearsal"
_FD_SETSIZE, _DESCRIPTORS_OF_LIBNFTABLES = 1024, 8
_IS_CHILD = "QUANTUM_NAT_CHILD"
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from cni_quantum_nat.backends.nftables.programs import run_as_child
run_as_child()
"""
_NFPROTO = {4: "ipv4", 6: "ipv6"}


def build(elements: list[Element], boot_id: str, coming: Iterable[Element] = ()) -> None:
    """Build the table and its elements in one transaction, in place of any present one. CniError(50) if refused.

    coming: elements that will be added next: the table gets the parts that they need.
    """
    parts = default_parts() | parts_of((*elements, *coming))
    try:
        _build(elements, parts, boot_id)
    except CniError as error:
        # Time-outs are a part: on a kernel without nfnetlink_cttimeout, the table has none.
        try:
            _build(elements, parts - {timeout_part(DEFAULT_TIMEOUT_S)}, boot_id)
        except CniError:
            raise error from None
        warn(CniError(error.code, f"established connections keep the kernel's own time-out: {error.details}"))


def _build(elements: list[Element], parts: set[str], boot_id: str) -> None:
    clearing, kept = _clear()
    text = table_text(TABLE, parts, boot_id=boot_id, kept=kept)
    _run([*clearing, text, *_content(elements)])


def _clear() -> tuple[list[str], list[str]]:
    """Return the commands that empty the table, whether it exists or not, and the time-outs that stay.

    An open connection refers to its `ct timeout` object: if that is deleted, the connection gets the kernel's own time-out, five days,
    and nothing can give it another. So the objects stay, also those that no rule uses any more.
    """
    table = NftablesTable()
    try:
        kept = [] if table.has_flags() else table.timeouts()
        if not kept:  # "add" first: so it can be deleted whether it exists or not
            return [f"add table inet {TABLE}", f"delete table inet {TABLE}"], []
        named = [f"delete set inet {TABLE} {name}" for name in table.maps_and_sets()]
        named += [f"delete chain inet {TABLE} {name}" for name in table.chains()]
        return [f"flush table inet {TABLE}", *named], kept
    finally:
        table.close()


def replace(elements: list[Element], boot_id: str, coming: Iterable[Element] = ()) -> None:
    """Replace a table that is in use, without losing connections that begin meanwhile. CniError(50) if refused.

    To a packet, a transaction is not one moment. It may ask the new chain before the commit, which is empty then, and the
    old one's maps after it, which are empty by now: 1 of 100 replacements lost a connection. So a copy of the table
    translates until the change is over, see cover.py.
    """
    try:
        cover = Cover()
    except CniError:  # Linux before 5.12 has no owner tables; and `reconcile --watch` keeps a cover all the time
        build(elements, boot_id, coming)
        return
    with cover:
        try:
            cover.copy()
        except CniError as error:  # such a table is no loss
            warn(error)
        build(elements, boot_id, coming)


def _content(elements: list[Element]) -> list[str]:
    return policies_text(_policies_of(elements)) + elements_text(elements)


def _policies_of(elements: Iterable[Element]) -> list[Policy]:
    """Return the policies of elements. InvalidConfiguration if conditions, of an older version's record, would need a look-up of a name."""
    policies = [element.policy for element in elements if element.policy is not None]
    for family, words in {(f, words) for policy in policies for f, words in policy.conditions.items()}:
        require_conditions(family, words)
    return policies


def add_parts(present: set[str], elements: list[Element]) -> None:
    """Add the parts that the elements need and the table lacks, and the chains of their policies.

    Raises: CniError(7) when conditions are no conditions, (50) when the kernel refuses.
    """
    policies = _policies_of(elements)
    for family, words in {(f, words) for policy in policies for f, words in policy.conditions.items()}:
        _check_conditions(family, " ".join(words))
    wanted = present | parts_of(elements)
    commands = extension_text(present, wanted, _timeouts_held()) if wanted != present else []
    _run([*commands, *policies_text(policies)])


def _timeouts_held() -> list[str]:
    table = NftablesTable()
    try:
        return table.timeouts()
    finally:
        table.close()


def rehearse() -> None:
    """Let the kernel create the table under another name and delete it, in one transaction. CniError(50) if refused."""
    _run([table_text(_REHEARSAL, {CORE, POLICIES}), f"delete table inet {_REHEARSAL}"])


def _check_conditions(family: int, text: str) -> None:
    """Let nft read the conditions, in a table that no packet meets, and see that there are matches and nothing else.

    model/conditions.py refuses the statements that it knows; this version of nft may know others.
    """
    try:
        _run(
            [
                f"add table inet {_REHEARSAL}",
                f"add chain inet {_REHEARSAL} conditions",
                f"add rule inet {_REHEARSAL} conditions meta nfproto {_NFPROTO[family]} {text}",
            ]
        )
        listed = json.loads(_run([f"list chain inet {_REHEARSAL} conditions"], as_json=True))["nftables"]
    except CniError as error:
        raise InvalidConfiguration(
            f"conditionsV{family} {text!r} is not understood by nftables", error.details
        ) from error
    finally:
        _run([f"add table inet {_REHEARSAL}", f"delete table inet {_REHEARSAL}"])
    expressions = [name for item in listed if "rule" in item for part in item["rule"]["expr"] for name in part]
    foreign = [name for name in expressions if name != "match"]
    if foreign:
        raise InvalidConfiguration(f"conditionsV{family} {text!r} is more than matches: {', '.join(foreign)}")


def _run(commands: list[str], nft: Nftables | None = None, *, as_json: bool = False) -> str:
    text = "\n".join(commands) + "\n"
    if nft is None and _is_crowded():
        status, output, error = _run_in_child(text, as_json=as_json)
    else:
        nft = nft or open_libnftables()
        nft.set_json_output(as_json)
        status, output, error = nft.cmd(text)
    if status:
        raise CniError(NOT_AVAILABLE, f"nftables cannot hold table inet {TABLE}", " ".join(error.split())[:1000])
    return str(output)


def _is_crowded() -> bool:
    """Return whether a descriptor that is opened next may be too high for select(2), by which libnftables would end this process."""
    free = posix.open("/", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)  # in a container there may be no /dev
    posix.close(free)
    return free + _DESCRIPTORS_OF_LIBNFTABLES > _FD_SETSIZE


def _run_in_child(text: str, *, as_json: bool) -> tuple[int, str, str]:
    """Run commands in a process with few descriptors: a program that uses the Python API may have thousands."""
    import os  # rare: only a program with that many descriptors
    import subprocess

    # The release has no Python beside it: it is started again, and goes by the variable (packaging/launcher/full.py). That is no runtime's call.
    environment = {name: value for name, value in os.environ.items() if name != "CNI_COMMAND"} | {_IS_CHILD: "1"}
    # It holds the lock too: when this process is killed, nobody else may begin before the child has ended.
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
        env=environment,
        input=json.dumps([text, as_json]),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=tuple(held),
    )
    if done.returncode:
        return 1, "", done.stderr
    status, output, error = json.loads(done.stdout)
    return status, output, error


def run_as_child() -> None:
    """Do what _run_in_child() asks for on standard input, and answer on standard output."""
    text, as_json = json.loads(sys.stdin.read())
    nft = open_libnftables()
    nft.set_json_output(as_json)
    sys.stdout.write(json.dumps(nft.cmd(text)))


def open_libnftables() -> Nftables:
    """Return a handle of the library, with its own netlink socket. CniError(50) if it cannot be loaded."""
    from nftables import Nftables  # loads the library, which may not be installed

    try:
        return Nftables()
    except OSError as error:
        raise CniError(
            NOT_AVAILABLE, f"libnftables cannot be loaded: {error}", "Install it: apt-get install libnftables1."
        ) from error
