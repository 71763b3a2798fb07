"""The layout of table `inet quantum`: its name, its sets and maps, and the chains that connections are sent to.

The table has a small core and parts. An ordinary container needs only the core; the first attachment that needs a part creates it.
rules, encoding and text read the fields of sets from here. text.py writes the chains.
A pod's start waits for this module.
"""

from __future__ import annotations

from ..base import MOST_MEMBERS

TABLE = "quantum"

# The version of everything in this module and text.py. Raise it with any change to them: a program replaces a table of a lower
# version, with all its elements, in one transaction, and leaves a table of a higher version alone.
LAYOUT = 3
# Comments name no state directory in tables of version 1.0.0 and older.
LAST_WITHOUT_REALM = 2
# Its only element is the version; the comment of that element names the boot of the kernel in which the table was made.
LAYOUT_SET = "layout"

# The owner of elements that several containers use: those of a shared port.
SHARED = "shared"
BUCKETS = MOST_MEMBERS  # new connections to a shared port are distributed over them

# IPv6 cannot route ::1 to a container, so with ipv6Localhost such packets carry this address between the socket and the
# container. It is an address of this host, and no other host sees it.
IPV6_LOCALHOST_ALIAS = "fd71:6e61:7400::1"

DEFAULT_TIMEOUT_S = 3600

# Kinds of fields. Values in Python: Address, Subnet, str (tcp), int, PortRange, str (eth0), int, and the name of a chain.
ADDRESS = "address"
SUBNET = "subnet"  # an interval of addresses
PROTOCOL = "inet_proto"
PORT = "inet_service"
PORTS = "inet_service-inet_service"  # an interval of ports
INTERFACE = "ifname"
BUCKET = "bucket"
GOTO = "goto"

# Parts. A prefix length and a time-out are parts too, see prefix_part() and timeout_part(). Ranges of ports are a part beside each
# part that has sets of ports, see ranges_part().
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
SOURCES = "sources"
INTERFACES = "interfaces"


class SetLayout:
    """A set of one family, or a map if it has `data`. part: the part it belongs to. purpose: its comment in the ruleset."""

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
        self.has_intervals = SUBNET in key or PORTS in key
        self.purpose = purpose


_PORT = (PROTOCOL, PORT)
_HOST_PORT = (ADDRESS, PROTOCOL, PORT)
_VIA = (ADDRESS, INTERFACE)
# Single ports are intervals here too: few host ports have filters, and so each filter needs one set.
_PORTS = (PROTOCOL, PORTS)
_HOST_PORTS = (ADDRESS, PROTOCOL, PORTS)
# Name without the family, part, key, data, purpose. The elements of sets in _COUNTED count connections, or refused packets.
_LAYOUTS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("endpoints", CORE, _PORT, (ADDRESS, PORT), "protocol, host port -> container"),
    ("containers", CORE, (ADDRESS,), (), "addresses that have rules here"),
    ("published", CORE, _HOST_PORT, (), "container, protocol, host port that leads to it"),
    ("masqueraded", CORE, (ADDRESS,), (), "masqueraded, whatever interface it leaves by"),
    ("host_ip_endpoints", HOST_IP, _HOST_PORT, (ADDRESS, PORT), "host address, protocol, host port -> container"),
    ("policies", POLICIES, _PORT, (GOTO,), "protocol, host port that is shared, or not for everybody -> chain"),
    ("host_ip_policies", POLICIES, _HOST_PORT, (GOTO,), "the same, on one host address"),
    (
        "buckets",
        SHARED_PORTS,
        (*_PORT, BUCKET),
        (ADDRESS, PORT),
        "protocol, host port, bucket -> one of its containers",
    ),
    ("host_ip_buckets", SHARED_PORTS, (*_HOST_PORT, BUCKET), (ADDRESS, PORT), "the same, on one host address"),
    ("sources", SOURCES, (*_PORTS, SUBNET), (), "protocol, host port, clients that may reach it"),
    ("host_ip_sources", SOURCES, (*_HOST_PORTS, SUBNET), (), "the same, on one host address"),
    ("restricted", SOURCES, _PORTS, (), "protocol, host port that refuses other clients"),
    ("host_ip_restricted", SOURCES, _HOST_PORTS, (), "the same, on one host address"),
    ("interfaces", INTERFACES, (*_PORTS, INTERFACE), (), "protocol, host port, interface that it is published on"),
    ("host_ip_interfaces", INTERFACES, (*_HOST_PORTS, INTERFACE), (), "the same, on one host address"),
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
        "restricted",
        "host_ip_restricted",
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


# The sets whose last field is a port. Each has a companion for ranges of ports, where each port leads to the same one of the container.
_RANGES = "_ranges"
_OF_PORTS = (
    "endpoints",
    "published",
    "host_ip_endpoints",
    "policies",
    "host_ip_policies",
    "unmasqueraded",
    "masquerade_all",
    "loopback_only",
    "localhost",
    "host_ip_localhost",
)


def ranges_set(name: str) -> str:
    """Name the companion, for ranges of ports, of a set for single ports. Its name is without the family."""
    return f"{name}{_RANGES}"


def ranges_part(part: str) -> str:
    """Name the part with the companions of a part's sets."""
    return f"{part}{_RANGES}" if part else "ranges"


def with_base(part: str) -> set[str]:
    """Return a part, and the part that its rules need."""
    return {part, part.removesuffix(_RANGES)}


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


def network_timeout_set(family: int, timeout_s: int) -> str:
    """Name the set of network CIDRs whose established TCP connections may be idle for so long."""
    return f"network_timeout{family}_{timeout_s}"


def network_timeout_part(timeout_s: int) -> str:
    """Name the part for this time-out of network CIDRs."""
    return f"network_timeout_{timeout_s}"


def udp_timeout_set(family: int, timeouts_s: tuple[int, int]) -> str:
    """Name the set of containers whose UDP connections may be idle for so long: see Attachment.udp_timeouts_s."""
    unreplied_s, stream_s = timeouts_s
    return f"udp_timeout{family}_{unreplied_s}_{stream_s}"


def udp_timeout_part(timeouts_s: tuple[int, int]) -> str:
    """Name the part for these time-outs."""
    unreplied_s, stream_s = timeouts_s
    return f"udp_timeout_{unreplied_s}_{stream_s}"


def network_udp_timeout_set(family: int, timeouts_s: tuple[int, int]) -> str:
    """Name the set of network CIDRs whose UDP connections may be idle for so long."""
    return f"network_{udp_timeout_set(family, timeouts_s)}"


def network_udp_timeout_part(timeouts_s: tuple[int, int]) -> str:
    """Name the part for these time-outs of network CIDRs."""
    return f"network_{udp_timeout_part(timeouts_s)}"


class _Sets(dict[str, SetLayout]):
    """The sets by name. Those for prefix lengths and time-outs are created on first access."""

    def __missing__(self, name: str) -> SetLayout:
        words = name.split("_")
        numbers = [int(word) for word in words if word.isdigit()]
        if not numbers:
            raise KeyError(name)
        kind = "_".join(word for word in words if not word.isdigit())
        family = int(kind[-1:])
        number = numbers[-1]
        key: tuple[str, ...]
        if kind[:-1] == "subnets":
            part, key, purpose = (
                prefix_part(family, number),
                (ADDRESS, ADDRESS),
                "container, first address of its subnet",
            )
        elif kind[:-1] == "timeout":
            part, key, purpose = (
                timeout_part(number),
                (ADDRESS,),
                f"its established connections may be idle for {number} s",
            )
        elif kind[:-1] == "network_timeout":
            part, key, purpose = (
                network_timeout_part(number),
                (SUBNET,),
                f"network CIDR, its established connections may be idle for {number} s",
            )
        elif kind[:-1] == "udp_timeout":
            part, key, purpose = (
                udp_timeout_part((numbers[0], number)),
                (ADDRESS,),
                f"its UDP connections may be idle for {numbers[0]} s, or {number} s as streams",
            )
        elif kind[:-1] == "network_udp_timeout":
            part, key, purpose = (
                network_udp_timeout_part((numbers[0], number)),
                (SUBNET,),
                f"network CIDR, its UDP connections may be idle for {numbers[0]} s, or {number} s as streams",
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
# Two, because a port on ::1 and the same port on all addresses may have different owners.
for _name, _purpose in (
    ("localhost6", "protocol, host port on all addresses that ::1 leads to"),
    ("host_ip_localhost6", "protocol, host port on ::1"),
):
    SETS[_name] = SetLayout(_name, 6, LOCALHOST6, _PORT, (), _purpose, counter=False)
for _single in [layout for layout in SETS.values() if layout.name[:-1] in _OF_PORTS]:
    _name = f"{ranges_set(_single.name[:-1])}{_single.family}"
    SETS[_name] = SetLayout(
        _name,
        _single.family,
        ranges_part(_single.part),
        (*_single.key[:-1], PORTS),
        _single.data[:1],  # without the container's port, which is the host's
        f"as {_single.name}, for ranges of ports",
        counter=_single.counter,
    )


def counts_refused(name: str) -> bool:
    """Whether the elements of a set that counts count packets that were refused, and not connections."""
    return SETS[name].part == SOURCES


def is_set(name: str) -> bool:
    """Whether this program knows a set or map of this name."""
    try:
        SETS[name]
    except (KeyError, ValueError):
        return False
    return True


# Chains for connections to host ports that are not ordinary. An element that leads to a chain is expensive: when one is added, the
# kernel checks all elements of all such maps for loops, 1 us each.
PUBLISH = "publish"
SPREAD_EVENLY = "spread"
SPREAD_BY_CLIENT = "spread_by_client"
ON_ONE_ADDRESS = "_on_ip"  # ends the names above for a port on one host address


# Filters of a host port, in the order in which a connection meets them. Each has a part, whose sets say what passes; the name of a
# policy's chain ends with its filters.
BY_INTERFACE = "_by_interface"
BY_SOURCE = "_by_source"
FILTERS = {BY_INTERFACE: INTERFACES, BY_SOURCE: SOURCES}


def is_filtered(chain: str) -> bool:
    """Whether the chain of a policy has filters: sets that say what passes have elements of its host ports."""
    return any(name in chain for name in FILTERS)


class Policy:
    """The policy of a host port: the chain that its connections are sent to.

    kind: one of the names above. conditions: by family, words in nft's syntax that a connection must match.
    filters: what it must pass after that, in the order of FILTERS.
    """

    __slots__ = ("conditions", "filters", "kind")

    def __init__(
        self, kind: str, conditions: dict[int, tuple[str, ...]] | None = None, filters: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.conditions = conditions or {}
        self.filters = filters

    @property
    def chain(self) -> str:
        """The name of its chain, which is created when first needed."""
        name = self.kind + "".join(self.filters)
        if not self.conditions:
            return name
        from _blake2 import blake2b  # only where a network has conditions

        text = repr(sorted(self.conditions.items()))
        return f"{name}_if_{blake2b(text.encode(), digest_size=6).hexdigest()}"

    @property
    def is_plain(self) -> bool:
        """Whether nothing keeps a connection out."""
        return not self.conditions and not self.filters

    @property
    def is_ordinary(self) -> bool:
        """Whether connections are published as usual, without an element that leads to a chain."""
        return self.kind.startswith(PUBLISH) and self.is_plain

    @property
    def following(self) -> Policy:
        """The policy for connections that match the conditions, or pass the first filter where there are none."""
        return Policy(self.kind, None, self.filters if self.conditions else self.filters[1:])
