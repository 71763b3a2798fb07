"""The layout of table `inet quantum`: its name, its sets and maps, and the chains that connections are sent to.

The table is a small core and parts. The core is what an ordinary container needs; a part is made when the first attachment needs it.
Everything that speaks of a set (rules, encoding, text) reads its fields here. text.py writes the chains.
A pod's start waits for this module.
"""

from __future__ import annotations

from ..base import MOST_MEMBERS

TABLE = "quantum"

# The version of all that this module and text.py say. To be raised with any change of them: a program replaces a table of a
# lower one, with all its elements in one transaction, and leaves a table of a higher one alone.
LAYOUT = 3
# Has the version as its one element, and in that element's comment the boot of the kernel that the table was made in.
LAYOUT_SET = "layout"

# The owner of what several containers use: a host port that is shared.
SHARED = "shared"
BUCKETS = MOST_MEMBERS  # that new connections to a shared port are distributed over

# IPv6 cannot route ::1 to a container, so with ipv6Localhost such packets have this address instead, between the socket and
# the network. It is one of this host's, and no other host sees it.
IPV6_LOCALHOST_ALIAS = "fd71:6e61:7400::1"

DEFAULT_TIMEOUT_S = 3600

# Kinds of fields. Values in Python: Address, Subnet, str (tcp), int, str (eth0), int, and the name of a chain.
ADDRESS = "address"
SUBNET = "subnet"  # an interval of addresses
PROTOCOL = "inet_proto"
PORT = "inet_service"
INTERFACE = "ifname"
BUCKET = "bucket"
GOTO = "goto"

# Parts. A prefix length and a time-out are parts too, see prefix_part() and timeout_part().
CORE = ""
HOST_IP = "host_ip"
POLICIES = "policies"
SHARED_PORTS = "shared_ports"
UNMASQUERADED = "unmasqueraded"
MASQUERADE_ALL = "masquerade_all"
LOCALHOST6 = "localhost6"
CLOSED = "closed"
VIA = "via"
FIXED_SOURCE = "fixed_source"
NO_MASQUERADE = "no_masquerade"
NETWORKS = "networks"


class SetLayout:
    """A set of one family, or with `data` a map. part: what it belongs to. purpose: its comment in the ruleset."""

    __slots__ = ("counter", "data", "family", "has_intervals", "key", "name", "part", "purpose")

    def __init__(  # noqa: PLR0913, PLR0917 - the columns of a table
        self,
        name: str,
        family: int,
        part: str,
        key: tuple[str, ...],
        data: tuple[str, ...],
        purpose: str,
        *,
        counter: bool,
    ) -> None:
        self.name = name
        self.family = family
        self.part = part
        self.key = key
        self.data = data
        self.counter = counter
        self.has_intervals = SUBNET in key
        self.purpose = purpose


_PORT = (PROTOCOL, PORT)
_HOST_PORT = (ADDRESS, PROTOCOL, PORT)
_VIA = (ADDRESS, INTERFACE)
# Name without the family, part, key, data, purpose. Those in _COUNTED count the connections that their elements are for.
_LAYOUTS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("endpoints", CORE, _PORT, (ADDRESS, PORT), "protocol, host port -> container"),
    ("containers", CORE, (ADDRESS,), (), "addresses that have rules here"),
    ("published", CORE, _HOST_PORT, (), "container, protocol, host port that leads to it"),
    ("masqueraded", CORE, (ADDRESS,), (), "masqueraded, whatever interface it leaves by"),
    ("host_ip_endpoints", HOST_IP, _HOST_PORT, (ADDRESS, PORT), "host address, protocol, host port -> container"),
    ("policies", POLICIES, _PORT, (GOTO,), "protocol, host port that is shared or has conditions -> chain"),
    ("host_ip_policies", POLICIES, _HOST_PORT, (GOTO,), "the same, on one host address"),
    (
        "buckets",
        SHARED_PORTS,
        (*_PORT, BUCKET),
        (ADDRESS, PORT),
        "protocol, host port, bucket -> one of its containers",
    ),
    ("host_ip_buckets", SHARED_PORTS, (*_HOST_PORT, BUCKET), (ADDRESS, PORT), "the same, on one host address"),
    ("unmasqueraded", UNMASQUERADED, _HOST_PORT, (), 'container, protocol, host port, with "snat": false'),
    (
        "masquerade_all",
        MASQUERADE_ALL,
        _HOST_PORT,
        (),
        "container, protocol, host port whose every client is masqueraded",
    ),
    ("masqueraded_via", VIA, _VIA, (), "masqueraded, if it leaves by this interface"),
    ("fixed", FIXED_SOURCE, (ADDRESS,), (), "has a source address of its own"),
    ("fixed_via", FIXED_SOURCE, _VIA, (), "has a source address of its own, if it leaves by this interface"),
    ("snat", FIXED_SOURCE, (ADDRESS,), (ADDRESS,), "container -> source address"),
    (
        "no_masquerade",
        NO_MASQUERADE,
        (SUBNET, SUBNET),
        (),
        "container or network, destination that sees its own address",
    ),
    ("home", CLOSED, _VIA, (), "container, interface of its own network"),
    ("loopback_only", CLOSED, _HOST_PORT, (), "container, protocol, container port for this host alone"),
    ("isolated", CLOSED, (ADDRESS,), (), "container that other networks reach by its host ports alone"),
    ("networks", NETWORKS, (SUBNET,), (), "network CIDRs that have rules here"),
    ("network_masqueraded", NETWORKS, (SUBNET,), (), "masqueraded, whatever interface it leaves by"),
    ("network_masqueraded_via", NETWORKS, (INTERFACE, SUBNET), (), "masqueraded, if it leaves by this interface"),
    ("network_fixed", NETWORKS, (SUBNET,), (), "has a source address of its own"),
    (
        "network_fixed_via",
        NETWORKS,
        (INTERFACE, SUBNET),
        (),
        "has a source address of its own, if it leaves by this interface",
    ),
    ("network_snat", NETWORKS, (SUBNET,), (ADDRESS,), "network CIDR -> source address"),
)
_COUNTED = frozenset(
    (
        "endpoints",
        "host_ip_endpoints",
        "buckets",
        "host_ip_buckets",
        "masqueraded",
        "masqueraded_via",
        "fixed",
        "fixed_via",
        "network_masqueraded",
        "network_masqueraded_via",
        "network_fixed",
        "network_fixed_via",
    )
)


def subnets_set(family: int, prefix_length: int) -> str:
    """Name the set of containers whose own subnet has this prefix length."""
    return f"subnets{family}_{prefix_length}"


def prefix_part(family: int, prefix_length: int) -> str:
    """Name the part for subnets of this prefix length."""
    return f"prefix{family}_{prefix_length}"


def timeout_set(family: int, timeout_s: int) -> str:
    """Name the set of containers whose established TCP connections may be idle for so long."""
    return f"timeout{family}_{timeout_s}"


def timeout_part(timeout_s: int) -> str:
    """Name the part for this time-out."""
    return f"timeout_{timeout_s}"


class _Sets(dict[str, SetLayout]):
    """The sets by name; those of prefix lengths and time-outs are made as they are asked for."""

    def __missing__(self, name: str) -> SetLayout:
        kind, _, number = name.partition("_")
        family = int(kind[-1:])
        key: tuple[str, ...]
        if kind[:-1] == "subnets":
            part, key, purpose = (
                prefix_part(family, int(number)),
                (ADDRESS, ADDRESS),
                f"container, first address of its /{number}",
            )
        elif kind[:-1] == "timeout":
            part, key, purpose = (
                timeout_part(int(number)),
                (ADDRESS,),
                f"its established connections may be idle for {number} s",
            )
        else:
            raise KeyError(name)
        layout = self[name] = SetLayout(name, family, part, key, (), purpose, counter=False)
        return layout


SETS = _Sets()
for _name, _part, _key, _data, _purpose in _LAYOUTS:
    for _family in (4, 6):
        SETS[f"{_name}{_family}"] = SetLayout(
            f"{_name}{_family}", _family, _part, _key, _data, _purpose, counter=_name in _COUNTED
        )
SETS["localhost6"] = SetLayout(
    "localhost6", 6, LOCALHOST6, _PORT, (), "protocol, host port that ::1 leads to", counter=False
)


def is_set(name: str) -> bool:
    """Whether this program knows a set or map of this name."""
    try:
        SETS[name]
    except (KeyError, ValueError):
        return False
    return True


# What a connection to a host port is sent to where that is not ordinary. An element that leads to a chain is dear: when the kernel is
# given one, it looks at all elements of all such maps for loops, 1 us each.
PUBLISH = "publish"
SPREAD_EVENLY = "spread"
SPREAD_BY_CLIENT = "spread_by_client"
ON_ONE_ADDRESS = "_on_ip"  # ends the names above for a port on one host address


class Policy:
    """What becomes of a connection to a host port: a chain that elements lead to.

    kind: one of the names above. conditions: by family, words in nft's syntax that the connection must match as well.
    """

    __slots__ = ("conditions", "kind")

    def __init__(self, kind: str, conditions: dict[int, tuple[str, ...]] | None = None) -> None:
        self.kind = kind
        self.conditions = conditions or {}

    @property
    def chain(self) -> str:
        """Name its chain, which is made when it is first needed."""
        if not self.conditions:
            return self.kind
        from _blake2 import blake2b  # only where a network has conditions

        text = repr(sorted(self.conditions.items()))
        return f"{self.kind}_if_{blake2b(text.encode(), digest_size=6).hexdigest()}"

    @property
    def is_ordinary(self) -> bool:
        """Whether connections are published as usual, which takes no element that leads to a chain."""
        return self.kind.startswith(PUBLISH) and not self.conditions

    @property
    def unconditional(self) -> Policy:
        """What becomes of a connection that matches the conditions."""
        return Policy(self.kind)
