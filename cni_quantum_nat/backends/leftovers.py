"""Remove what portmap and ipMasq of CNI's own plugins left for a container.

A runtime that deletes a container by today's list, as containerd does, never calls the plugin that was in it when the container was added. Then its
rules stay, and lead to whichever container gets the address next. Names and comments are those of containernetworking/plugins 1.9.
"""

from __future__ import annotations

from hashlib import sha512
from typing import TYPE_CHECKING

from ..kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NetlinkSocket, attribute, decoding
from ..model.errors import NOT_AVAILABLE, CniError, KernelRefused
from .iptables.programs import restore, save_nat
from .iptables.text import Script
from .nftables.encoding import comment_of, text
from .nftables.table import OTHER_TABLES, fields, request, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.attachments import AttachmentId

_CHAIN_CHARACTERS = 28
_HASH_CHARACTERS = 16
_NETLINK_NETFILTER = 12
_GETRULE, _DELRULE = 7, 8
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_USER_DATA = 1, 2, 3, 7


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
    name = text(table)
    for reply in netlink.dump(request(_GETRULE, NLM_F_DUMP, 0, attribute(_RULE_TABLE, name), family)):
        if reply.error_number:
            raise KernelRefused(f"list the rules of table {table}", reply.error_number)
        rule = fields(reply.payload)
        if rule[_RULE_TABLE] == name:
            yield rule, comment_of(rule.get(_RULE_USER_DATA, b""))


def _delete(netlink: NetlinkSocket, rules: list[tuple[int, dict[int, bytes]]]) -> None:
    """Delete rules in one transaction."""
    requests = [
        request(
            _DELRULE,
            NLM_F_ACK,
            number,
            b"".join(attribute(kind, rule[kind]) for kind in (_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE)),
            family,
        )
        for number, (family, rule) in enumerate(rules, 1)
    ]
    for reply in netlink.exchange(transaction(requests)):
        if reply.error_number:
            raise KernelRefused("delete the rules that portmap or ipMasq left", reply.error_number)


def _hash(text: str) -> str:
    return sha512(text.encode()).hexdigest()[:_HASH_CHARACTERS]
