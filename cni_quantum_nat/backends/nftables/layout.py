"""The layout of table `inet quantum`: its name, its sets and maps, and the chains that packets enter by.

Everything that speaks of a set (the plan, the netlink encoding, the ruleset text) reads its fields here.
"""

from __future__ import annotations

TABLE = "quantum"

# The version of all that this module and slowpath/ruleset.py say. To be raised with any change of them: a program
# replaces a table of a lower one, with all its elements in one transaction, and leaves a table of a higher one alone.
LAYOUT = 2
LAYOUT_SET = "layout"  # has it as its one element, since a table itself cannot say anything before Linux 5.10

# Who owns what several containers use: a host port that is shared.
SHARED = "shared"
SLOTS = 64  # that new connections to a shared port are dealt to

# IPv6 cannot route ::1 to a container, so with ipv6Localhost such packets bear this address in its place,
# between the socket and the network. It is one of this host's, and no other host sees it.
IPV6_LOCALHOST_ALIAS = "fd71:6e61:7400::1"

DEFAULT_TIMEOUT_S = 3600

# Kinds of fields. Values in Python: Address, str (tcp), int, str (eth0), int, and the name of a chain.
ADDRESS4 = "ipv4_addr"
ADDRESS6 = "ipv6_addr"
PROTOCOL = "inet_proto"
PORT = "inet_service"
INTERFACE = "ifname"
SLOT = "slot"
JUMP = "jump"
GOTO = "goto"


# Prefix lengths that containers' subnets usually have: one set each, and one look-up in it for each new connection.
# Other lengths take an element with a verdict, which is dear (see below).
ORDINARY_LENGTHS = {4: (16, 20, 22, 23, 24, 25, 26), 6: (64, 80, 112, 120)}


class SetLayout:
    """A set, or with `data` a map. `purpose` is its comment in the ruleset."""

    __slots__ = ("counter", "data", "has_intervals", "key", "name", "purpose")

    def __init__(  # noqa: PLR0913 - a set has as many properties
        self,
        name: str,
        key: tuple[str, ...],
        data: tuple[str, ...] = (),
        *,
        counter: bool = False,
        has_intervals: bool = False,
        purpose: str,
    ) -> None:
        self.has_intervals = has_intervals
        self.name = name
        self.key = key
        self.data = data
        self.counter = counter
        self.purpose = purpose


def _layouts_of(family: int) -> list[SetLayout]:
    address = ADDRESS4 if family == 4 else ADDRESS6
    return [
        *_layouts_of_host_ports(f"host_ip_{{}}{family}", (address,), (address, PORT)),
        *_layouts_of_host_ports(f"{{}}{family}", (), (address, PORT)),
        *_layouts_of_containers(family, address),
        *_layouts_of_sources(family, address),
        *_layouts_of_whole_networks(family, address),
    ]


def _layouts_of_whole_networks(family: int, address: str) -> list[SetLayout]:
    """Lay out what the Python API fills; their keys are subnets, which do not overlap."""
    key = (address,)
    return [
        SetLayout(
            f"cidr_networks{family}",
            key,
            (JUMP,),
            has_intervals=True,
            purpose="whole network -> the chain of its prefix length",
        ),
        SetLayout(
            f"cidr_outbound{family}",
            key,
            (GOTO,),
            counter=True,
            has_intervals=True,
            purpose="whole network -> its source outside",
        ),
        SetLayout(
            f"cidr_snat{family}",
            key,
            key,
            has_intervals=True,
            purpose="whole network -> its source address outside",
        ),
    ]


def _layouts_of_host_ports(name: str, where: tuple[str, ...], endpoint: tuple[str, ...]) -> list[SetLayout]:
    """Lay out what is looked up for a connection to one host address, or with an empty `where` to any."""
    key = (*where, PROTOCOL, PORT)
    words = "host address, protocol, host port" if where else "protocol, host port on any local address"
    ports = name.format("ports") if where else name.format("host_ports")
    return [
        SetLayout(ports, key, purpose=f"{words} that a container has, or several share"),
        SetLayout(
            name.format("port_policies"),
            key,
            (GOTO,),
            purpose=f"{words} -> what becomes of connections to it, where that is not ordinary",
        ),
        SetLayout(name.format("endpoints"), key, endpoint, counter=True, purpose=f"{words} -> container"),
        SetLayout(
            name.format("slots"),
            (*key, SLOT),
            endpoint,
            counter=True,
            purpose=f"{words}, slot -> one of its containers",
        ),
    ]


def _layouts_of_containers(family: int, address: str) -> list[SetLayout]:
    published = (address, PROTOCOL, PORT)
    return [
        *(
            SetLayout(
                subnets_set(family, length),
                (address, address),
                purpose=f"container, first address of its own /{length}",
            )
            for length in ORDINARY_LENGTHS[family]
        ),
        SetLayout(
            f"networks{family}",
            (address,),
            (JUMP,),
            purpose="container -> the chain of its prefix length, where that is not ordinary",
        ),
        SetLayout(
            f"subnets{family}",
            (address, address),
            purpose="container or whole network, first address of its own subnet",
        ),
        SetLayout(
            f"published{family}",
            published,
            purpose="container, protocol, host port whose neighbours and localhost are masqueraded",
        ),
        SetLayout(
            f"masquerade_all{family}",
            published,
            purpose="container, protocol, host port whose every client is masqueraded",
        ),
        SetLayout(
            f"loopback_only{family}", published, purpose="container, protocol, container port for this host alone"
        ),
        SetLayout(f"isolated{family}", (address,), purpose="container that others reach by its host ports alone"),
        SetLayout(f"home{family}", (address, INTERFACE), purpose="container, interface that its neighbours come by"),
    ]


def _layouts_of_sources(family: int, address: str) -> list[SetLayout]:
    via = (address, INTERFACE)
    return [
        SetLayout(
            f"masqueraded{family}", (address,), counter=True, purpose="container, whatever interface it leaves by"
        ),
        SetLayout(f"masqueraded_via{family}", via, counter=True, purpose="container, interface it leaves by"),
        SetLayout(
            f"outbound{family}",
            (address,),
            (GOTO,),
            counter=True,
            purpose="container -> its source outside, where that is not ordinary",
        ),
        SetLayout(
            f"outbound_via{family}",
            via,
            (GOTO,),
            counter=True,
            purpose="container, interface it leaves by -> its source there, where that is not ordinary",
        ),
        SetLayout(f"snat{family}", (address,), (address,), purpose="container -> its source address outside"),
        SetLayout(
            f"snat_via{family}",
            via,
            (address,),
            purpose="container, interface it leaves by -> its source address there",
        ),
    ]


def subnets_set(family: int, prefix_length: int) -> str:
    """Name the set of containers whose own subnet has this prefix length."""
    return f"subnets{family}_{prefix_length}" if prefix_length in ORDINARY_LENGTHS[family] else f"subnets{family}"


_LOCALHOST6 = SetLayout("localhost6", (PROTOCOL, PORT), purpose="protocol, host port that ::1 leads to a container by")

SETS = {layout.name: layout for layout in (*_layouts_of(4), *_layouts_of(6), _LOCALHOST6)}

# The chains that CHECK looks at, with the number of rules in each and of jumps to it: what the kernel
# reports as `use`. Chains that elements lead to have one user more for each, so those are not here: chains of
# prefix lengths all jump to `own`, and the ordinary policies to `established`, which count them.
CHAIN_USE = {
    "guard": 4,
    "guard_forward": 2,
    "guard_new": 8,
    "prerouting": 1,
    "output": 1,
    "localhost6_out": 1,
    "localhost6_in": 1,
    "host_ports": 11,
    "established": 11,
    "postrouting": 2,
    "inbound": 26,
    "outbound4": 16,
    "outbound6": 13,
    "own": 509,
}

# What becomes of a connection. To be published or masqueraded with the usual time-out is ordinary, and said by a set.
# Everything else is said by a map to a chain, which is dear: when the kernel is given an element with a verdict, it
# looks at all elements of all such maps for loops, 1 us each. The names are those of chains, see slowpath/ruleset.py for their rules.
PUBLISH = "publish"
SPREAD_EVENLY = "spread"
SPREAD_BY_CLIENT = "spread_by_client"
ON_ONE_ADDRESS = "_on_ip"  # ends the names above for a port on one host address
MASQUERADED = "masqueraded"
FIXED_SOURCE = "fixed_source"
FIXED_SOURCE_VIA = "fixed_source_via"
FIXED_SOURCE_OF_NETWORK = "fixed_source_of_network"


class Policy:
    """What becomes of a connection: a chain that elements lead to.

    kind: one of the names above.
    timeout_s: how long it may be idle, when it is TCP and established.
    conditions: by family, words in nft's syntax that it must match as well.
    """

    __slots__ = ("conditions", "kind", "timeout_s")

    def __init__(
        self, kind: str, timeout_s: int = DEFAULT_TIMEOUT_S, conditions: dict[int, tuple[str, ...]] | None = None
    ) -> None:
        self.kind = kind
        self.timeout_s = timeout_s
        self.conditions = conditions or {}

    @property
    def chain(self) -> str:
        """Name its chain: the ordinary ones are part of the table, others are made when they are first needed."""
        name = self.kind if self.timeout_s == DEFAULT_TIMEOUT_S else f"{self.kind}_{self.timeout_s}"
        if not self.conditions:
            return name
        from _blake2 import blake2b  # only where a network has conditions

        text = repr(sorted(self.conditions.items()))
        return f"{name}_if_{blake2b(text.encode(), digest_size=6).hexdigest()}"

    @property
    def is_ordinary(self) -> bool:
        """Whether its chain is part of the table."""
        return self.timeout_s == DEFAULT_TIMEOUT_S and not self.conditions

    @property
    def without_conditions(self) -> Policy:
        """What becomes of a connection that matches the conditions."""
        return Policy(self.kind, self.timeout_s)


ORDINARY = [
    Policy(kind + where) for kind in (PUBLISH, SPREAD_EVENLY, SPREAD_BY_CLIENT) for where in ("", ON_ONE_ADDRESS)
] + [Policy(kind) for kind in (MASQUERADED, FIXED_SOURCE, FIXED_SOURCE_VIA, FIXED_SOURCE_OF_NETWORK)]


def prefix_chain(family: int, prefix_length: int) -> str:
    """Name the chain that compares with a subnet of this prefix length."""
    return f"subnet{family}_{prefix_length}"
