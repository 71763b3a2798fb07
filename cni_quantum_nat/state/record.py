"""The format of a record: what is written to the state directory, its version, and the checks when it is read.

    format      the version of the format, an integer; a record without it is of format 1
    bootId      since 2: the boot of the kernel in which it was written, empty if unknown
    isolate     since 2, in inbound
    replaces    since 2: earlier generations of the attachment that the kernel may still have rules of
    hostNetns, netnsDirectory, sequence, hadEarlier, waitsFor, withdrawn, udpTimeoutsS, noMasquerade in outbound, range and live in a port
                mapping, allowFrom and publishOn: since 3
    the others  Attachment.as_record()

An older format is upgraded when it is read. A newer one is left alone: only the program that wrote it knows what it means.
A pod's start waits for this module.
"""

from __future__ import annotations

from ..model.attachments import BY_CLIENT, EXCLUSIVE, IPTABLES, NFTABLES, NOWHERE, PROTOCOLS, SPREAD, Attachment
from ..model.errors import NEWER_VERSION, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..model.attachments import AttachmentId, PortMapping

FORMAT = 3
_FAMILIES = (4, 6)
_INTERFACE_MAX_BYTES = 15
_SYNTAX = frozenset('"\\*')  # to nft, or to iptables-restore


def write_record(attachment: Attachment, boot_id: str) -> dict[str, Any]:
    """Return the content of the file."""
    record = {"format": FORMAT, "bootId": boot_id, **attachment.as_record()}
    if attachment.replaces:
        record["replaces"] = [former.as_record() for former in attachment.replaces]
    return record


def read_record(content: object, identity: AttachmentId, path: str) -> Attachment:
    """Read a record, of any boot.

    Raises: CniError(108) if its format is newer; AttributeError, KeyError, TypeError or ValueError
    if it is damaged, or is not the record of `identity`, as its path says.
    """
    if not isinstance(content, dict):
        raise TypeError("not an object")
    record = _upgraded(content, path)
    attachment = Attachment.from_record(record)
    attachment.replaces = [Attachment.from_record(former) for former in record.get("replaces", ())]
    if content.get("format", 1) < FORMAT:
        _join_ranges(attachment)
    for generation in attachment.generations:
        if generation.id != identity:
            raise ValueError(f"it is of {generation.id}")
        generation.boot_id = record["bootId"]
        _check(generation)
    return attachment


def _upgraded(record: dict[str, Any], path: str) -> dict[str, Any]:
    written = record.get("format", 1)
    if not isinstance(written, int) or written < 1:
        raise ValueError(f"format is {written!r}")
    if written > FORMAT:
        raise CniError(
            NEWER_VERSION,
            f"the record {path} has format {written}, and this quantum-nat knows no newer one than {FORMAT}",
            "Use the newer quantum-nat that wrote it; or remove the file, and start the container again.",
        )
    if written == 1:
        record = {**record, "bootId": "", "inbound": {**record["inbound"], "isolate": False}}
    if written < FORMAT:
        record = _upgraded_to_3(record)
        record["replaces"] = [_upgraded_to_3(former) for former in record.get("replaces", ())]
    return record


def _upgraded_to_3(record: dict[str, Any]) -> dict[str, Any]:
    """Add the fields of format 3. For what was not recorded, assume the worst case."""
    return {
        **record,
        "netnsDirectory": list(NOWHERE),
        "hostNetns": list(NOWHERE),
        "sequence": 0,
        "hadEarlier": True,
        "waitsFor": [],
        "outbound": {**record["outbound"], "noMasquerade": []},
        # 1.0.0 recorded mappings that served none of the container's addresses with host port 0, and then could not read them.
        "portMappings": [mapping for mapping in record["portMappings"] if mapping["hostPort"] != 0],
    }


def _join_ranges(attachment: Attachment) -> None:
    """Make ranges, as ADD does by now, of the ports of an older record: the table is made anew too.

    The Python API names each mapping when it removes one, so it has no ranges.
    """
    from ..model.ranges import join  # rare: a record is written in the newest format

    for generation in attachment.generations if attachment.netns else ():
        generation.port_mappings = join(generation.port_mappings)


def _check(attachment: Attachment) -> None:
    """Check that rules can be made of each value: when the table is rebuilt, they are written as text."""
    _require("backend", attachment.backend in (NFTABLES, IPTABLES))
    _require("netns", isinstance(attachment.netns, str))
    for pair in (attachment.netns_identity, attachment.netns_directory, attachment.host_netns):
        _require("netnsIdentity, netnsDirectory or hostNetns", all(map(_is_number, pair)))
    _require("sequence", _is_number(attachment.sequence))
    _require("hadEarlier", isinstance(attachment.had_earlier, bool))
    _require("waitsFor", all(isinstance(name, str) for name in attachment.waits_for))
    _require("bootId", isinstance(attachment.boot_id, str))
    _require("createdAt", isinstance(attachment.created_at, (int, float)))
    _require("establishedTimeoutS", _is_number(attachment.established_timeout_s) and attachment.established_timeout_s)
    _require("udpTimeoutsS", all(_is_number(s) and s for s in attachment.udp_timeouts_s or ()))
    _require("isNetwork", isinstance(attachment.is_network, bool))
    _require("hostInterface", all(_is_interface(e.host_interface) for e in attachment.endpoints))
    for mapping in (*attachment.port_mappings, *attachment.withdrawn):
        _check_mapping(mapping)
    _check_outbound(attachment)
    _check_inbound(attachment)


def _check_mapping(mapping: PortMapping) -> None:
    _require("protocol", mapping.protocol in PROTOCOLS)
    _require("hostPort", _is_number(mapping.host_port) and 1 <= mapping.host_port <= 65535)
    _require("containerPort", _is_number(mapping.container_port) and 1 <= mapping.container_port <= 65535)
    _require("range", mapping.size == 1 or _is_range(mapping))
    _require("allocated", isinstance(mapping.allocated, bool))
    _require("live", isinstance(mapping.live, bool))
    _require("sharing", mapping.sharing in (EXCLUSIVE, SPREAD, BY_CLIENT))
    _require("publishOn", all(name and _is_interface(name) for name in mapping.publish_on))


def _is_range(mapping: PortMapping) -> bool:
    """Whether it is as ranges are: shifted, shared and allocated ports are single ones."""
    is_plain_range = mapping.container_port == mapping.host_port and not (mapping.allocated or mapping.sharing)
    return is_plain_range and mapping.size > 1 and mapping.last_host_port <= 65535


def _check_outbound(attachment: Attachment) -> None:
    outbound = attachment.outbound
    _require("masquerade", all(family in _FAMILIES for family in outbound.masquerade))
    for family, names in outbound.external_interfaces.items():
        _require("externalInterfaces", family in _FAMILIES and all(map(_is_interface, names)))
    for family, address in outbound.snat_addresses.items():
        _require("snatAddresses", address.family == family)


def _check_inbound(attachment: Attachment) -> None:
    inbound = attachment.inbound
    for name, flag in (("snat", inbound.snat), ("masqueradeAll", inbound.masquerade_all)):
        _require(name, isinstance(flag, bool))
    _require("ipv6Localhost", isinstance(inbound.ipv6_localhost, bool))
    _require("isolate", isinstance(inbound.isolate, bool))
    _require("markBit", inbound.mark_bit is None or (_is_number(inbound.mark_bit) and inbound.mark_bit < 32))
    _require("setMarkChain", isinstance(inbound.set_mark_chain, str))
    _require("publishOn", all(name and _is_interface(name) for name in inbound.publish_on))
    for family, words in inbound.conditions.items():
        _require("conditions", family in _FAMILIES and all(isinstance(word, str) for word in words))


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_interface(name: object) -> bool:
    return isinstance(name, str) and len(name.encode()) <= _INTERFACE_MAX_BYTES and is_plain(name)


def is_plain(interface: str) -> bool:
    """Whether an interface name can be written in a rule as it is."""
    return interface.isprintable() and " " not in interface and _SYNTAX.isdisjoint(interface)


def _require(name: str, holds: object) -> None:
    if not holds:
        raise ValueError(f"{name} has a value that cannot be")
