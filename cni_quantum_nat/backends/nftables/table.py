"""Add, delete and look up elements of table `inet quantum` over netlink (linux/netfilter/nf_tables.h).

A batch is a transaction: all of it happens, or nothing. Functions that list sets say so: they are for garbage collection, healing and
the operator's commands.
A pod's start waits for this module.
"""

from __future__ import annotations

from _struct import Struct
from errno import EEXIST, ENOENT, ERESTART

from ...kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    decoding,
    message,
)
from ...model.errors import NEWER_VERSION, NOT_AVAILABLE, AlreadyThere, CniError, HasChanged, KernelRefused, NotThere
from .encoding import (
    addition,
    counts_in,
    deletion,
    elements_in,
    in_set,
    join_intervals,
    layout_change,
    layouts_in,
    look_up,
    look_up_layout,
    text,
)
from .layout import LAST_WITHOUT_REALM, LAYOUT, LAYOUT_SET, PORTS, SETS, TABLE, is_set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...kernel.netlink import Reply
    from .rules import Element

_NETLINK_NETFILTER = 12
_NFPROTO_INET = 1
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETTABLE, _GETCHAIN, _NEWRULE, _GETRULE, _GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN, _GETOBJ = (
    1,
    4,
    6,
    7,
    10,
    12,
    13,
    14,
    16,
    19,
)

_BATCH_GENERATION = 1
_GENERATION_NUMBER = 1
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN = 1, 2
_SET_TABLE, _SET_NAME, _SET_FLAGS = 1, 2, 3
_SET_ANONYMOUS = 1
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE = 1, 2, 3
_CT_TIMEOUT = (7).to_bytes(4, "big")  # NFT_OBJECT_CT_TIMEOUT

_FAMILY_HEADER = Struct(">BBH")  # family, version, resource
_PART = Struct("=BL")  # of a fingerprint: the kind of message, its length
_LAYOUT_SEQUENCE = 1 << 30  # of the request for the version, beside those for elements or chains
_GETS_PER_REQUEST = 64  # the answers must fit into a socket's default buffer

# Where portmap and ipMasq of CNI's own plugins have their rules (containernetworking/plugins 1.9), beside table nat of iptables.
OTHER_TABLES = {"cni_hostport": (2, 10), "cni_plugins_masquerade": (_NFPROTO_INET,)}
_OTHER_FAMILIES = (2, 10, _NFPROTO_INET)
_NAT = text("nat")

_RULES = " rules "
MISSING = "table inet quantum is missing"
# The base chains. Other chains are recognised by their rules.
_BASE_CHAINS = ("guard", "prerouting", "output", "postrouting", "guard_forward", "localhost6_out", "localhost6_in")


def request(operation: int, flags: int, sequence: int, payload: bytes, family: int = _NFPROTO_INET) -> bytes:
    """Frame a request. operation: its number in nf_tables. payload: attributes."""
    return message(_SUBSYSTEM | operation, flags | NLM_F_REQUEST, sequence, _FAMILY_HEADER.pack(family, 0, 0) + payload)


def transaction(requests: list[bytes], condition: bytes = b"") -> bytes:
    """Frame requests of which all or none are done. condition: attributes of the batch."""
    begin, end = (
        message(kind, NLM_F_REQUEST, sequence, _FAMILY_HEADER.pack(0, 0, _SUBSYSTEM >> 8) + content)
        for kind, sequence, content in ((_BATCH_BEGIN, 0, condition), (_BATCH_END, len(requests) + 1, b""))
    )
    return begin + b"".join(requests) + end


def fields(payload: bytes) -> dict[int, bytes]:
    """Return the attributes of a message of nf_tables."""
    return dict(attributes(payload, _FAMILY_HEADER.size))


class NftablesTable:
    """The table in the kernel, through a socket that is opened when first needed.

    Owners are as records name them. In the table, those of a state directory that is not the usual one end with its realm, so
    that several state directories on a host can tell what is theirs; of others, the owner that is returned has a colon.
    """

    __slots__ = ("_has_realms", "_is_known", "_realm", "_socket", "is_older", "made_as")

    def __init__(self, realm: str = "") -> None:
        """`realm` is that of the state directory, see State.realm."""
        self._realm = realm
        self._socket: NetlinkSocket | None = None
        self._is_known = False  # whether its version is known to be ours
        self.is_older = False
        self._has_realms = True  # whether its comments tell state directories apart
        self.made_as = ""  # the digest of the fingerprint that the table had when it was last made, by whatever program

    def commit(
        self,
        *,
        delete: Iterable[Element] = (),
        add: Iterable[Element] = (),
        exclusive: bool = False,
        generation: bytes = b"",
    ) -> None:
        """Delete, then add, in one transaction.

        With `exclusive`, an element that exists already, also an equal one, is an error. With `generation`, the ruleset must still be
        the one that generation() told.

        Raises: NotThere, AlreadyThere, HasChanged, KernelRefused; nothing has changed then.
        """
        flags = NLM_F_CREATE | NLM_F_EXCL if exclusive else NLM_F_CREATE
        operations = [(_DELSETELEM, 0, deletion(element)) for element in delete]
        operations += [(_NEWSETELEM, flags, addition(element, self.comment_of(element))) for element in add]
        if operations:
            self.transact(operations, "change the elements of table inet quantum", generation)

    def transact(self, operations: list[tuple[int, int, bytes]], what: str, generation: bytes = b"") -> None:
        """Do all operations (number, flags, attributes), or nothing. Raises: as commit(); `what` is said if the kernel refuses."""
        last = len(operations)
        body = [
            request(operation, flags | (NLM_F_ACK if number == last else 0), number, payload)
            for number, (operation, flags, payload) in enumerate(operations, 1)
        ]
        condition = attribute(_BATCH_GENERATION, generation) if generation else b""
        replies = self._exchange(transaction(body, condition))
        errors = [reply.error_number for reply in replies if reply.error_number]
        _raise_first(errors, what)

    def generation(self) -> bytes:
        """Return the number of the ruleset's generation, which every change raises, as the kernel writes it."""
        reply = self._exchange(request(_GETGEN, 0, 1, b"", family=0))[0]
        if reply.error_number:
            raise KernelRefused("tell the generation of the ruleset", reply.error_number)
        with decoding:
            return fields(reply.payload)[_GENERATION_NUMBER]

    def find(self, elements: list[Element]) -> list[Element | None]:
        """Return the kernel's element for the key of each element, None if there is none. CniError(108) for a newer table."""
        found: list[Element | None] = [None] * len(elements)
        for start in range(0, max(1, len(elements)), _GETS_PER_REQUEST):
            chunk = elements[start : start + _GETS_PER_REQUEST]
            requests = [] if self._is_known else [_LAYOUT_REQUEST]  # first: what a comment means depends on the version
            requests += [request(_GETSETELEM, 0, start + i, look_up(element)) for i, element in enumerate(chunk)]
            if not requests:
                break
            for reply in self._exchange(b"".join(requests), len(requests)):
                if reply.sequence == _LAYOUT_SEQUENCE:
                    self._note_layout(reply)
                elif reply.is_answer:
                    with decoding:
                        asked = elements[reply.sequence]
                    found[reply.sequence] = self._answer(reply, asked)
                elif reply.error_number not in (0, ENOENT):
                    raise KernelRefused("look up an element of table inet quantum", reply.error_number)
        return found

    def _answer(self, reply: Reply, asked: Element) -> Element | None:
        """Return the element that the kernel has found; None if it only overlaps with the interval that is asked for."""
        held = next(elements_in(reply.payload[_FAMILY_HEADER.size :], asked.set_name), None)
        if held is not None:
            held.owner = self.owner_of(held.owner)
            layout = SETS[asked.set_name]
            if layout.has_intervals and len(layout.key) > 1:
                is_for_port = layout.key[-1] == PORTS and isinstance(asked.key[-1], int)
                return held if held.key == asked.key or is_for_port else None
            held.key = asked.key  # an interval comes back as its first address
        return held

    def state_of(self, boot_id: str) -> tuple[str, bytes]:
        """Return what is wrong with the table as a whole, or "", and a fingerprint of all its rules.

        The fingerprint holds the table's flags, its base chains and every rule as the kernel lists them: whoever changes any of it, in
        place too, changes the fingerprint. CniError(108) for the table of a newer program.
        """
        where = attribute(_CHAIN_TABLE, text(TABLE))
        requests = [request(_GETTABLE, 0, 0, attribute(_TABLE_NAME, text(TABLE)))]
        requests += [request(_GETCHAIN, 0, 1, where + attribute(_CHAIN_NAME, text(name))) for name in _BASE_CHAINS]
        requests.append(_LAYOUT_REQUEST)
        problem = ""
        parts: list[tuple[int, bytes]] = []
        for reply in self._exchange(b"".join(requests), len(requests)):
            if reply.sequence == _LAYOUT_SEQUENCE:
                problem = problem or self._note_layout(reply, boot_id)
            elif reply.is_answer:
                parts.append((reply.kind & 0xFF, reply.payload))
            elif reply.sequence == 0 and reply.error_number:
                return MISSING, b""
        listing = self._dump(request(_GETRULE, NLM_F_DUMP, 0, attribute(_RULE_TABLE, text(TABLE))), "list the rules")
        parts += [(_NEWRULE, payload) for payload in listing]
        # Without the header, which has the number of the ruleset's generation.
        contents = [(kind, payload[_FAMILY_HEADER.size :]) for kind, payload in parts]
        return problem, b"".join(_PART.pack(kind, len(content)) + content for kind, content in contents)

    def sign(self, boot_id: str, digest: str) -> None:
        """Keep the digest of the table's fingerprint in the table itself: other state directories go by it."""
        comment = f"boot {boot_id}{_RULES}{digest}"
        changes = [
            (_DELSETELEM, 0, layout_change(LAYOUT, None)),
            (_NEWSETELEM, NLM_F_CREATE, layout_change(LAYOUT, comment)),
        ]
        self.transact(changes, "sign table inet quantum")

    def _note_layout(self, reply: Reply, boot_id: str = "") -> str:
        """Return how the table differs in version or boot. CniError(108) if the version is newer."""
        if reply.is_answer:
            self._is_known = True
            self.is_older, self._has_realms = False, True  # the call may just have replaced it
            _, comment = next(layouts_in(reply.payload[_FAMILY_HEADER.size :]), (LAYOUT, ""))
            boot, _, self.made_as = comment.partition(_RULES)
            if boot_id and boot != f"boot {boot_id}":
                return "the table is of an earlier boot: somebody restored it from a file"
            return ""
        layout = self._read_layout()
        if layout > LAYOUT:
            raise CniError(
                NEWER_VERSION,
                f"table inet {TABLE} has version {layout}, and this quantum-nat knows no newer one than {LAYOUT}",
                "Use the newer quantum-nat that made it. To go back to this one: nft delete table inet quantum, and then "
                "quantum-nat reconcile; connections that are established may break.",
            )
        self.is_older = layout > 0
        self._has_realms = not 0 < layout <= LAST_WITHOUT_REALM
        return f"the table has version {layout}, not {LAYOUT}"

    def _read_layout(self) -> int:
        """Return the version of the table, 0 if it has none."""
        return max((version for content in self._list(LAYOUT_SET) for version, _ in layouts_in(content)), default=0)

    def check_layout(self) -> None:
        """Check that the table is not from a newer program. CniError(108) if it is."""
        self.find([])

    def set_names(self) -> list[str]:
        """List the sets and maps of the table that this program knows."""
        wanted = request(_GETSET, NLM_F_DUMP, 0, attribute(_SET_TABLE, text(TABLE)))
        names = []
        for payload in self._dump(wanted, "list the sets"):
            with decoding:
                name = _name(fields(payload)[_SET_NAME])
            if is_set(name):
                names.append(name)
        return sorted(names)

    def has_flags(self) -> bool:
        """Whether the table exists and has flags: ours never has, so somebody made it dormant or owns it."""
        replies = self._exchange(request(_GETTABLE, 0, 0, attribute(_TABLE_NAME, text(TABLE))))
        return any(any(fields(reply.payload).get(_TABLE_FLAGS, b"")) for reply in replies if reply.is_answer)

    def chains(self) -> list[str]:
        """List the chains of the table, for rebuilds and new parts."""
        of_all = self._dump(request(_GETCHAIN, NLM_F_DUMP, 0, b""), "list the chains")
        parts = [fields(payload) for payload in of_all]
        with decoding:
            return [_name(part[_CHAIN_NAME]) for part in parts if part[_CHAIN_TABLE] == text(TABLE)]

    def has_other_plugins(self) -> bool:
        """Whether portmap or ipMasq has, or had, rules in the kernel, by nftables or by iptables' nft variant."""
        for family in _OTHER_FAMILIES:
            for payload in self._dump(request(_GETCHAIN, NLM_F_DUMP, 0, b"", family), "list the chains"):
                part = fields(payload)
                with decoding:
                    table, chain = part[_CHAIN_TABLE], part[_CHAIN_NAME]
                if (table == _NAT and chain.startswith(b"CNI-")) or _name(table) in OTHER_TABLES:
                    self.close()  # drops the unread rest
                    return True
        return False

    def maps_and_sets(self) -> list[str]:
        """List the named maps and sets, also those that this program does not know, for rebuilds."""
        wanted = request(_GETSET, NLM_F_DUMP, 0, attribute(_SET_TABLE, text(TABLE)))
        parts = [fields(payload) for payload in self._dump(wanted, "list the sets")]
        with decoding:
            return [
                _name(part[_SET_NAME])
                for part in parts
                if not int.from_bytes(part.get(_SET_FLAGS, b""), "big") & _SET_ANONYMOUS
            ]

    def timeouts(self) -> list[str]:
        """List the `ct timeout` objects, for rebuilds and new parts."""
        wanted = attribute(_OBJECT_TABLE, text(TABLE)) + attribute(_OBJECT_TYPE, _CT_TIMEOUT)
        parts = [
            fields(payload) for payload in self._dump(request(_GETOBJ, NLM_F_DUMP, 0, wanted), "list the time-outs")
        ]
        with decoding:
            return [_name(part[_OBJECT_NAME]) for part in parts]

    def owned_elements(self) -> list[Element]:
        """List all elements of all sets. Not for ADD, DEL or CHECK."""
        self.check_layout()
        listed: list[Element] = []
        for name in self.set_names():
            layout = SETS[name]
            elements: list[Element] = []
            ends: list[bytes] = []
            for content in self._list(name):
                elements += elements_in(content, name, ends)
            if layout.has_intervals and len(layout.key) == 1:
                join_intervals(elements, ends)
            listed += elements
        for element in listed:
            element.owner = self.owner_of(element.owner)
        return listed

    def listed(self, set_name: str) -> Iterator[Element]:
        """List the elements of a set whose intervals, if it has any, are in a concatenation; nothing if there is no such set."""
        for content in self._list(set_name):
            for element in elements_in(content, set_name):
                element.owner = self.owner_of(element.owner)
                yield element

    def counted_flows(self) -> Iterator[tuple[str, str, int]]:
        """List the elements that count connections: set, owner, connections. For scrapes and rebuilds.

        A key is told once, although the kernel may list one twice while the set grows.
        """
        for name in self.set_names():
            if SETS[name].counter:
                found = {counted[0]: counted for content in self._list(name) for counted in counts_in(content)}
                for _, comment, flows in found.values():
                    yield name, self.owner_of(comment), flows

    def _list(self, set_name: str) -> Iterator[bytes]:
        """Yield the attributes of the messages that list a set; nothing if there is no such set."""
        for payload in self._dump(request(_GETSETELEM, NLM_F_DUMP, 0, in_set(set_name)), f"list set {set_name}"):
            yield payload[_FAMILY_HEADER.size :]

    def _dump(self, request: bytes, what: str) -> Iterator[bytes]:
        """Yield the messages of a listing; nothing if the object does not exist."""
        try:
            for reply in self._open().dump_unchanged(request):
                if reply.error_number == ENOENT:
                    return
                if reply.error_number:
                    raise KernelRefused(what, reply.error_number)
                yield reply.payload
        except OSError as error:
            self.close()  # drops the unread rest
            raise KernelRefused(what, error.errno or 0, reason=error.strerror) from error

    def comment_of(self, element: Element) -> str:
        """Return the comment that names an element's owner."""
        return element.owner + self._realm if ":" not in element.owner else element.owner

    def owner_of(self, comment: str) -> str:
        """Return the owner that a comment names. One from another state directory has a colon."""
        owner, colon, realm = comment.partition(":")
        if colon + realm == self._realm or not self._has_realms:
            return owner
        return comment if colon or not comment else f"{comment}:"

    def exists(self) -> bool:
        """Whether the table exists. CniError(50) if nf_tables cannot be used at all."""
        replies = self._exchange(
            request(_GETGEN, NLM_F_ACK, 1, b"", family=0)
            + request(_GETTABLE, NLM_F_ACK, 2, attribute(_TABLE_NAME, text(TABLE))),
            2,
        )
        for reply in replies:
            if reply.error_number and reply.sequence == 1:
                raise _unusable(OSError(reply.error_number, ""))
        return any(reply.is_answer and reply.sequence == 2 for reply in replies)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close_without_waiting()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            try:
                self._socket = NetlinkSocket(_NETLINK_NETFILTER)
            except OSError as error:
                raise _unusable(error) from error
        return self._socket

    def _exchange(self, messages: bytes, at_least: int = 1) -> list[Reply]:
        try:
            return self._open().exchange(messages, at_least)
        except OSError as error:
            self.close()
            raise KernelRefused("take an nf_tables request", error.errno or 0, reason=error.strerror) from error


_LAYOUT_REQUEST = request(_GETSETELEM, 0, _LAYOUT_SEQUENCE, look_up_layout(LAYOUT))


def rules_in(fingerprint: bytes) -> dict[str, list[bytes]]:
    """Return the rules of a fingerprint by chain, to tell two of them apart; the table and its base chains are under ""."""
    rules: dict[str, list[bytes]] = {}
    offset = 0
    while offset < len(fingerprint):
        kind, size = _PART.unpack_from(fingerprint, offset)
        offset += _PART.size
        part = fingerprint[offset : offset + size]
        offset += size
        name = dict(attributes(part))[_RULE_CHAIN].rstrip(b"\0").decode() if kind == _NEWRULE else ""
        rules.setdefault(name, []).append(part)
    return rules


def _name(framed: bytes) -> str:
    return framed.rstrip(b"\0").decode()


def _raise_first(errors: list[int], what: str) -> None:
    """Raise the most telling error: one that we cannot handle, else a missing object, else an existing key."""
    if ERESTART in errors:
        raise HasChanged(what, ERESTART)
    for number in errors:
        if number not in (ENOENT, EEXIST):
            raise KernelRefused(what, number)
    if ENOENT in errors:
        raise NotThere(what, ENOENT)
    if errors:
        raise AlreadyThere(what, EEXIST)


def _unusable(error: OSError) -> CniError:
    from posix import strerror

    return CniError(
        NOT_AVAILABLE,
        f"nftables cannot be used: {strerror(error.errno or 0)}",
        "The plugin needs CAP_NET_ADMIN in the host's network namespace and a kernel with nf_tables "
        '(5.7 or newer; module nf_tables). Without nf_tables, set "backend": "iptables".',
    )
