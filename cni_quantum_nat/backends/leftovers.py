"""Remove what portmap and ipMasq of CNI's own plugins left for a container.

A runtime that deletes a container by today's list, as containerd does, never calls the plugin that was in it when the container was added. Then its
rules stay, and lead to whichever container gets the address next. Names and comments are those of containernetworking/plugins 1.9.
"""

from __future__ import annotations

from _struct import Struct
from hashlib import sha512
from typing import TYPE_CHECKING

from ..kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    decoding,
    message,
)
from ..model.errors import NOT_AVAILABLE, CniError, KernelRefused
from .iptables.programs import restore, save_nat
from .iptables.text import Script
from .nftables.table import OTHER_TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.attachments import AttachmentId

_CHAIN_CHARACTERS = 28
_HASH_CHARACTERS = 16
_COMMENT_IN_USER_DATA = 0
_NETLINK_NETFILTER = 12
_SUBSYSTEM, _BATCH_BEGIN, _BATCH_END = 10 << 8, 0x10, 0x11
_GETRULE, _DELRULE = 7, 8
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_USER_DATA = 1, 2, 3, 7
_FAMILY_HEADER = Struct(">BBH")


def remove_leftovers(attachment_id: AttachmentId) -> None:
    """Remove the rules of an attachment that portmap or ipMasq made; rules of iptables only where that is installed.

    Raises: KernelRefused, CniError(101) if iptables-restore fails, (11) if its lock stays taken.
    """
    _remove_by_nftables(attachment_id)
    _remove_by_iptables(attachment_id)  # last: its programs can fail for reasons of their own


def _remove_by_iptables(attachment_id: AttachmentId) -> None:
    digest = sha512(f"{attachment_id.network}{attachment_id.container_id}".encode()).hexdigest()
    theirs = {f"{prefix}{digest}"[:_CHAIN_CHARACTERS] for prefix in ("CNI-DN-", "CNI-")}
    for family in (4, 6):
        try:
            listed = save_nat(family)
        except CniError as error:
            if error.code != NOT_AVAILABLE:
                raise
            continue
        script = Script()
        for line in listed.split("\n"):
            if line.startswith("-A ") and line.rpartition(" -j ")[2] in theirs:
                script.delete_line("nat", line)
            elif line.startswith(":") and line[1:].partition(" ")[0] in theirs:
                script.remove_chains("nat", [line[1:].partition(" ")[0]])
        restore(family, script)


def _remove_by_nftables(attachment_id: AttachmentId) -> None:
    instance = _hash(f"{attachment_id.interface}:{attachment_id.container_id}")
    comments = {
        "cni_hostport": attachment_id.container_id,
        "cni_plugins_masquerade": f"{_hash(attachment_id.network)}-{instance}",
    }
    netlink = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        with decoding:
            found = [
                (family, rule)
                for table, families in OTHER_TABLES.items()
                for family in families
                for rule, comment in _rules(netlink, family, table)
                if comment.partition(",")[0] == comments[table]
            ]
        if found:
            _delete(netlink, found)
    except OSError as error:
        raise KernelRefused("tell or delete what portmap and ipMasq left", error.errno or 0) from error
    finally:
        netlink.close()


def _rules(netlink: NetlinkSocket, family: int, table: str) -> Iterator[tuple[dict[int, bytes], str]]:
    """Yield the rules of a table with their comments; none if there is no such table."""
    wanted = _FAMILY_HEADER.pack(family, 0, 0) + attribute(_RULE_TABLE, table.encode() + b"\0")
    for reply in netlink.dump(message(_SUBSYSTEM | _GETRULE, NLM_F_REQUEST | NLM_F_DUMP, 0, wanted)):
        if reply.error_number:
            raise KernelRefused(f"list the rules of table {table}", reply.error_number)
        rule = dict(attributes(reply.payload, _FAMILY_HEADER.size))
        if rule[_RULE_TABLE] == table.encode() + b"\0":
            yield rule, _comment_in(rule.get(_RULE_USER_DATA, b""))


def _comment_in(user_data: bytes) -> str:
    """Return the comment in a rule's user data, as nft writes it: type, length and value of each part."""
    offset = 0
    while offset + 2 <= len(user_data):
        kind, size = user_data[offset : offset + 2]
        if kind == _COMMENT_IN_USER_DATA:
            return user_data[offset + 2 : offset + 2 + size].rstrip(b"\0").decode(errors="replace")
        offset += 2 + size
    return ""


def _delete(netlink: NetlinkSocket, rules: list[tuple[int, dict[int, bytes]]]) -> None:
    """Delete rules in one transaction."""
    batch = _FAMILY_HEADER.pack(0, 0, _SUBSYSTEM >> 8)
    body = [
        message(
            _SUBSYSTEM | _DELRULE,
            NLM_F_REQUEST | NLM_F_ACK,
            number,
            _FAMILY_HEADER.pack(family, 0, 0)
            + b"".join(attribute(kind, rule[kind]) for kind in (_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE)),
        )
        for number, (family, rule) in enumerate(rules, 1)
    ]
    begin = message(_BATCH_BEGIN, NLM_F_REQUEST, 0, batch)
    end = message(_BATCH_END, NLM_F_REQUEST, len(rules) + 1, batch)
    for reply in netlink.exchange(begin + b"".join(body) + end):
        if reply.error_number:
            raise KernelRefused("delete the rules that portmap or ipMasq left", reply.error_number)


def _hash(text: str) -> str:
    return sha512(text.encode()).hexdigest()[:_HASH_CHARACTERS]
