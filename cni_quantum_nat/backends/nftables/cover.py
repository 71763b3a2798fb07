"""Table `inet quantum_cover`: a copy of table `inet quantum` that translates what ours does not, while ours is missing or replaced.

Its chains have the hooks of ours at the next priority. NAT asks the chains of a hook in turn until one has translated the connection, so
the copy decides only where ours has not; as both say the same, it decides something only while ours is gone. It has the flag `owner`
(Linux 5.12): a flush by others leaves it alone, and it disappears with the socket that made it, however the process ends. While it
exists the kernel also keeps the hooks of NAT and conntrack, without which established connections would lose their translation.

The copy is made of the kernel's own messages: whatever sets, chains and rules the table has, it gets, except what sets time-outs.
Those would be objects of the copy, and a connection would lose its time-out with it.
"""

from __future__ import annotations

from errno import ENOENT
from struct import Struct
from typing import TYPE_CHECKING, Self

from ...kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
)
from ...model.errors import NOT_AVAILABLE, CniError, KernelRefused
from .encoding import user_data
from .layout import LAYOUT_SET, TABLE
from .table import fields, request, transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...kernel.netlink import Reply

COVER = f"{TABLE}_cover"
PRESENT, EMPTY, MISSING = "present", "empty", "missing"
_PURPOSE = "translates while table inet quantum is missing or replaced; belongs to the process that keeps it, see quantum-nat reconcile --watch"

_NETLINK_NETFILTER = 12
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE = 0, 1, 2, 3, 4, 6, 7
_NEWSET, _GETSET, NEW_ELEMENTS, _GETSETELEM, DELETED_ELEMENTS, NEW_GENERATION, _GETGEN = 9, 10, 12, 13, 14, 15, 16
_NLM_F_APPEND = 0x800

_NUMBER = Struct(">L")
_PRIORITY = Struct(">l")

TABLE_NAME = 1  # the first attribute of every object
_TABLE_FLAGS, _TABLE_USE, _TABLE_USERDATA = 2, 3, 6
_FLAG_OWNER = 2
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_FLAGS, _CHAIN_USERDATA = 3, 4, 5, 7, 10, 12
_HOOK_PRIORITY = 2
_RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 2, 4, 7
_SET_NAME, _SET_FLAGS, _SET_ID = 2, 3, 10
_SET_KEPT = (3, 4, 5, 6, 7, 8, 9, 13, 17, 18)  # flags, types, lengths, policy, description, comment, counters
_SET_ANONYMOUS, _SET_INTERVAL, _SET_CONCATENATED = 1, 4, 0x80
ELEMENTS_SET = 2
_ELEMENTS_LIST, _ELEMENTS_SET_ID = 3, 4
_LIST_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_LOOKUP_SET, _LOOKUP_SET_ID = 1, 4
_GENERATION_ID = 1

_ATTEMPTS = 5
_ANONYMOUS = b"__set%d\0"  # the kernel numbers such a set itself

OUR_TABLE = attribute(TABLE_NAME, f"{TABLE}\0".encode())
_ITS_TABLE = attribute(TABLE_NAME, f"{COVER}\0".encode())


class Cover:
    """A context manager that keeps the table, empty at first."""

    def __init__(self) -> None:
        """Create the table. CniError(50) if the kernel lacks owned tables, or another process keeps this one."""
        self._socket = NetlinkSocket(_NETLINK_NETFILTER)
        try:
            self.clear()
        except CniError as error:
            self._socket.close()
            raise CniError(
                NOT_AVAILABLE,
                f"cannot create table inet {COVER}: {error.message}",
                "It needs Linux 5.12, and can be kept once.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the table: it belongs to the socket."""
        self._socket.close()

    def clear(self) -> None:
        """Remove everything from the table, so that it translates nothing."""
        self._commit(_fresh_table())

    def copy(self) -> int | None:
        """Make the table a copy of ours, and return the generation of the ruleset that it was copied from.

        None if ours is missing or has no rules, as after a flush: then the table stays as it is.
        Call it while nothing changes ours, under the lock: otherwise it may be copied again, and CniError is raised in the end.
        """
        for _ in range(_ATTEMPTS):
            before = self._generation()
            try:
                requests = self._read()
            except InterruptedError:
                continue
            except OSError as error:
                self.close()  # replies may be missing, and would be taken for those to a later request
                raise KernelRefused(f"list table inet {TABLE}", error.errno or 0) from error
            if self._generation() == before:
                if not any(kind == _NEWRULE for kind, _, _ in requests):
                    return None
                self._commit(requests)  # at once: a copy without its elements would translate nothing
                return before
        raise KernelRefused("list table inet quantum: it changes all the time", 0)

    def apply(self, changes: Iterable[tuple[int, bytes]]) -> None:
        """Change the elements as ours were: each change is the number and the payload of a notification. KernelRefused if one fails."""
        self._commit(
            [(kind, NLM_F_CREATE if kind == NEW_ELEMENTS else 0, _renamed(payload)) for kind, payload in changes]
        )

    def _generation(self) -> int:
        replies = self._exchange(request(_GETGEN, NLM_F_ACK, 1, b"", family=0))
        return next(generation_of(reply.payload) for reply in replies if reply.is_answer)

    def _read(self) -> list[tuple[int, int, bytes]]:
        """Return the requests that make the table: its chains, sets with their elements, and rules."""
        chains = [
            p for payload in self._dump(_GETCHAIN, b"") if (p := fields(payload))[TABLE_NAME] == f"{TABLE}\0".encode()
        ]
        sets = [fields(payload) for payload in self._dump(_GETSET, OUR_TABLE)]
        rules = [fields(payload) for payload in self._dump(_GETRULE, OUR_TABLE)]
        anonymous: dict[bytes, bytes] = {}
        made = _fresh_table()
        made += [(_NEWCHAIN, NLM_F_CREATE, _chain(chain)) for chain in chains]
        for number, parts in enumerate(sets, 1):
            name = parts[_SET_NAME]
            flags = int.from_bytes(parts.get(_SET_FLAGS, b""), "big")
            if name == f"{LAYOUT_SET}\0".encode():
                continue
            if flags & _SET_ANONYMOUS:
                anonymous[name] = _NUMBER.pack(number)
            made.append((_NEWSET, NLM_F_CREATE, _set(parts, number, anonymous)))
            wanted = OUR_TABLE + attribute(ELEMENTS_SET, name)
            messages = [fields(payload).get(_ELEMENTS_LIST, b"") for payload in self._dump(_GETSETELEM, wanted)]
            if flags & _SET_INTERVAL and not flags & _SET_CONCATENATED:
                messages = [_reversed(messages)]  # listed from the end, and added from the start
            made += [
                (NEW_ELEMENTS, NLM_F_CREATE, _elements(name, content, anonymous)) for content in messages if content
            ]
        made += [
            (_NEWRULE, NLM_F_CREATE | _NLM_F_APPEND, rule)
            for parts in rules
            if (rule := _rule(parts, anonymous)) is not None
        ]
        return made

    def _dump(self, operation: int, content: bytes) -> Iterator[bytes]:
        for reply in self._socket.dump(request(operation, NLM_F_DUMP, 1, content)):
            if reply.error_number == ENOENT:  # there is no such table
                return
            if reply.error_number:
                raise KernelRefused(f"list table inet {TABLE}", reply.error_number)
            yield reply.payload

    def _commit(self, requests: list[tuple[int, int, bytes]]) -> None:
        last = len(requests)
        body = [
            request(kind, flags | (NLM_F_ACK if number == last else 0), number, content)
            for number, (kind, flags, content) in enumerate(requests, 1)
        ]
        for reply in self._exchange(transaction(body)):
            if reply.error_number:
                raise KernelRefused(f"change table inet {COVER}", reply.error_number)

    def _exchange(self, messages: bytes) -> list[Reply]:
        try:
            return self._socket.exchange(messages)
        except OSError as error:
            self.close()  # as above
            raise KernelRefused(f"change table inet {COVER}", error.errno or 0) from error


def presence() -> str:
    """Return what this network namespace has of a cover: PRESENT, EMPTY (it translates nothing) or MISSING. CniError(101) if it cannot be told."""
    asking = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        replies = asking.exchange(request(_GETTABLE, 0, 1, _ITS_TABLE))
    except OSError as error:
        raise KernelRefused(f"look up table inet {COVER}", error.errno or 0, "Run it as root.") from error
    finally:
        asking.close()
    for reply in replies:
        if reply.is_answer:
            return PRESENT if any(fields(reply.payload)[_TABLE_USE]) else EMPTY
        if reply.error_number != ENOENT:
            raise KernelRefused(f"look up table inet {COVER}", reply.error_number, "Run it as root.")
    return MISSING


def generation_of(payload: bytes) -> int:
    """Read the generation's number in the kernel's message about it."""
    return int.from_bytes(fields(payload)[_GENERATION_ID], "big")


def _fresh_table() -> list[tuple[int, int, bytes]]:
    comment = attribute(_TABLE_USERDATA, user_data(_PURPOSE))
    owned = _ITS_TABLE + attribute(_TABLE_FLAGS, _NUMBER.pack(_FLAG_OWNER)) + comment
    # "new" first: so it can be deleted whether it exists or not
    return [(_NEWTABLE, NLM_F_CREATE, owned), (_DELTABLE, 0, _ITS_TABLE), (_NEWTABLE, NLM_F_CREATE, owned)]


def _chain(parts: dict[int, bytes]) -> bytes:
    content = _ITS_TABLE + attribute(_CHAIN_NAME, parts[_CHAIN_NAME])
    if _CHAIN_HOOK in parts:
        hook = dict(attributes(parts[_CHAIN_HOOK]))
        hook[_HOOK_PRIORITY] = _PRIORITY.pack(_PRIORITY.unpack(hook[_HOOK_PRIORITY])[0] + 1)
        content += nested(_CHAIN_HOOK, b"".join(attribute(kind, value) for kind, value in hook.items()))
    return content + _kept(parts, (_CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_FLAGS, _CHAIN_USERDATA))


def _set(parts: dict[int, bytes], number: int, anonymous: dict[bytes, bytes]) -> bytes:
    name = _ANONYMOUS if parts[_SET_NAME] in anonymous else parts[_SET_NAME]
    return _ITS_TABLE + attribute(_SET_NAME, name) + attribute(_SET_ID, _NUMBER.pack(number)) + _kept(parts, _SET_KEPT)


def _elements(set_name: bytes, content: bytes, anonymous: dict[bytes, bytes]) -> bytes:
    if set_name in anonymous:
        where = attribute(ELEMENTS_SET, _ANONYMOUS) + attribute(_ELEMENTS_SET_ID, anonymous[set_name])
    else:
        where = attribute(ELEMENTS_SET, set_name)
    return _ITS_TABLE + where + nested(_ELEMENTS_LIST, content)


def _rule(parts: dict[int, bytes], anonymous: dict[bytes, bytes]) -> bytes | None:
    """Return the rule for the copy; None if it sets a time-out."""
    expressions = []
    for _, content in attributes(parts[_RULE_EXPRESSIONS]):
        framed, expression = content, dict(attributes(content))
        if expression[_EXPRESSION_NAME] == b"objref\0":
            return None
        if expression[_EXPRESSION_NAME] == b"lookup\0":
            looked = dict(attributes(expression[_EXPRESSION_DATA]))
            if looked[_LOOKUP_SET] in anonymous:
                looked[_LOOKUP_SET_ID] = anonymous[looked[_LOOKUP_SET]]
                looked[_LOOKUP_SET] = _ANONYMOUS
                data = b"".join(attribute(kind, value) for kind, value in looked.items())
                framed = attribute(_EXPRESSION_NAME, b"lookup\0") + nested(_EXPRESSION_DATA, data)
        expressions.append(nested(_LIST_ELEMENT, framed))
    where = _ITS_TABLE + attribute(_RULE_CHAIN, parts[_RULE_CHAIN])
    return where + nested(_RULE_EXPRESSIONS, b"".join(expressions)) + _kept(parts, (_RULE_USERDATA,))


def _kept(parts: dict[int, bytes], kinds: Iterable[int]) -> bytes:
    return b"".join(attribute(kind, parts[kind]) for kind in kinds if kind in parts)


def _reversed(messages: list[bytes]) -> bytes:
    listed = [nested(_LIST_ELEMENT, element) for content in messages for _, element in attributes(content)]
    return b"".join(reversed(listed))


def _renamed(payload: bytes) -> bytes:
    parts = fields(payload)
    return _elements(parts[ELEMENTS_SET], parts[_ELEMENTS_LIST], {})
