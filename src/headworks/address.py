"""The address a request is counted by: the client's, as far as it can be believed.

Nothing a caller writes is believed by itself. Forwarding headers count only from trusted proxies, and
only as far as these reach.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, MutableMapping
from socket import AF_INET, inet_pton
from typing import Any, Final

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = tuple[int, int, str]
"""Version, number, and what is counted by it: the address itself, or of IPv6 its /64."""

MAX_HOPS: Final = 32
"""Forwarding hops looked at, counted from our side."""
MAX_FORWARDED: Final = 8192
"""Bytes of `Forwarded` that are parsed; a longer one is not believed."""
NOWHERE: Final = "local"
"""The address of a peer that has none (a Unix socket)."""

_PIECE: Final = re.compile(
    r"""[ \t]*+ (?: (?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+) =
        (?: "(?P<quoted>(?:[^"\\]|\\.)*+)" | (?P<bare>[^",;\s\\]+) ) )? [ \t]*+ (?P<end>[,;]|\Z)""",
    re.VERBOSE | re.DOTALL,
)
"""One pair of a `Forwarded` element (RFC 7239, section 4), or nothing, up to its end."""


class Trust:
    """Networks whose word on addresses counts, made once and asked for every hop.

    networks  may be none: then nobody's does
    """

    __slots__ = ("_masks",)

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._masks: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for network in networks:
            masks = self._masks[network.version]
            masks.append((int(network.netmask), int(network.network_address)))

    def holds(self, address: Address) -> bool:
        """Whether the address is within one of them."""
        version, number, _ = address
        for mask, network in self._masks[version]:  # noqa: SIM110  # any() takes twice as long
            if number & mask == network:
                return True
        return False


def client_address(scope: Scope, trust: Trust) -> str:
    """The address a request is counted by.

    The peer's own, unless the peer is trusted: then what proxies forwarded is walked from our side,
    past trusted hops only, and the first other address is the client. The walk ends early at anything
    that is no address, with the last good hop. An IPv6 address stands for its whole /64, which is what
    one subscriber has.

    `X-Forwarded-For` and `Forwarded` (RFC 7239) are both read. A proxy writes one of them and passes
    the other on as it came, so where both are there and name two clients, neither is believed, and the
    request is counted by the peer; so is one whose `Forwarded` is malformed, anywhere.
    """
    address = _client(scope, trust)[0]
    return NOWHERE if address is None else address[2]


def client_within(scope: Scope, trust: Trust) -> bool:
    """Whether the client itself is within these networks: every hop is, and nothing that was forwarded
    left any doubt of it. Whoever is counted by the peer for want of anything better is not."""
    address, sure = _client(scope, trust)
    return sure and address is not None and trust.holds(address)


def _client(scope: Scope, trust: Trust) -> tuple[Address | None, bool]:
    """The address, and whether what was forwarded was read to its end and spoke with one voice; None
    for a peer that has none."""
    client = scope.get("client")
    peer = _parse(client[0]) if client else None
    if peer is None:
        return None, False
    if not trust.holds(peer):
        return peer, True
    by, rfc = _headers(scope)
    if rfc is None:
        return (peer, True) if by is None else _walk(peer, _from_the_right(by), trust)
    named, sure = _walk(peer, _forwarded(rfc), trust)
    if by is not None:
        other, also = _walk(peer, _from_the_right(by), trust)
        if other[2] != named[2]:
            return peer, False
        sure = sure and also
    return named, sure


def _walk(peer: Address, hops: Iterable[str], trust: Trust) -> tuple[Address, bool]:
    """Where the walk ends, and whether at an address that it was to end at."""
    address = peer
    for hop in hops:
        found = _parse(hop)
        if found is None:
            return address, False
        address = found
        if not trust.holds(address):
            break
    return address, True


def _headers(scope: Scope) -> tuple[str | None, str | None]:
    """`X-Forwarded-For` and `Forwarded`; several of one name read as one list, None where there is
    none."""
    by: bytes | None = None
    rfc: bytes | None = None
    for name, value in scope.get("headers", ()):
        if name == b"x-forwarded-for":
            by = value if by is None else by + b"," + value
        elif name == b"forwarded":
            rfc = value if rfc is None else rfc + b"," + value
    return (
        None if by is None else by.decode("latin-1"),
        None if rfc is None else rfc.decode("latin-1"),
    )


def _from_the_right(rest: str) -> Iterator[str]:
    """What `X-Forwarded-For` names, nearest hop first."""
    for _ in range(MAX_HOPS):
        rest, comma, hop = rest.rpartition(",")
        if hop.strip() or comma:
            yield hop.strip()
        if not comma:
            return


def _forwarded(text: str) -> list[str]:
    """What `Forwarded` names, nearest hop first; one that is no address where any of it is malformed.

    It is read from the left: only so can a quote that a client opens not hide what a proxy appended.
    """
    hops: list[str] = []
    pairs: dict[str, str] = {}
    at = 0
    while len(text) <= MAX_FORWARDED and (piece := _PIECE.match(text, at)) is not None:
        if piece["name"] is not None:
            name = piece["name"].lower()
            if name in pairs:
                return [""]
            quoted = piece["quoted"]
            pairs[name] = piece["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = piece.end()
        if piece["end"] == ";":
            continue
        if pairs or hops:
            hops.append(pairs.get("for", ""))
            pairs = {}
        if not piece["end"]:
            return hops[: -MAX_HOPS - 1 : -1]
    return [""]


def _parse(text: str) -> Address | None:
    """An address, with or without brackets, port or zone; None when it is none."""
    try:  # what nearly every one is, in a twentieth of the time
        return 4, int.from_bytes(inet_pton(AF_INET, text)), text
    except (OSError, ValueError):
        return _any(text)


def _any(text: str) -> Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return 6, int(address), f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
        address = address.ipv4_mapped
    return 4, int(address), str(address)
