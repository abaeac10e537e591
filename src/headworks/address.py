"""The address a request is counted by: the client's, as far as it can be believed.

Nothing a caller writes is believed by itself. Forwarding headers count only from trusted proxies, and
only as far as these reach.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

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


def client_address(scope: Scope, trust: Iterable[Network]) -> str:
    """The address a request is counted by.

    The peer's own, unless the peer is trusted: then what proxies forwarded is walked from our side,
    past trusted hops only, and the first other address is the client. The walk ends early at anything
    that is no address, with the last good hop. An IPv6 address stands for its whole /64, which is what
    one subscriber has.

    `X-Forwarded-For` and `Forwarded` (RFC 7239) are both read. A proxy writes one of them and passes
    the other on as it came, so where both are there and name two clients, neither is believed, and the
    request is counted by the peer; so is one whose `Forwarded` is malformed, anywhere.
    """
    return _client(scope, trust)[0]


def client_within(scope: Scope, trust: Iterable[Network]) -> bool:
    """Whether the client itself is within these networks: every hop is, and nothing that was forwarded
    left any doubt of it. Whoever is counted by the peer for want of anything better is not."""
    networks = tuple(trust)
    address, sure = _client(scope, networks)
    if not sure or address == NOWHERE:
        return False
    first = ipaddress.ip_network(address).network_address  # of IPv6, the /64 that a client is counted by
    return _trusted(first, networks)


def _client(scope: Scope, trust: Iterable[Network]) -> tuple[str, bool]:
    """The address, and whether what was forwarded was read to its end and spoke with one voice."""
    client = scope.get("client")
    peer = _parse(client[0]) if client else None
    if peer is None:
        return NOWHERE, False
    networks = tuple(trust)
    if not _trusted(peer, networks):
        return _counted(peer), True
    walks = [_x_forwarded_for(scope), _forwarded(scope)]
    ends = [_walk(peer, hops, networks) for hops in walks if hops is not None]
    found = {_counted(address) for address, _ in ends}
    if len(found) > 1:
        return _counted(peer), False
    return found.pop() if found else _counted(peer), all(sure for _, sure in ends)


def _walk(peer: Address, hops: Iterable[str], networks: tuple[Network, ...]) -> tuple[Address, bool]:
    """Where the walk ends, and whether at an address that it was to end at."""
    address = peer
    for hop in hops:
        found = _parse(hop)
        if found is None:
            return address, False
        address = found
        if not _trusted(address, networks):
            break
    return address, True


def _counted(address: Address) -> str:
    if address.version == 6:
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


def _header(scope: Scope, wanted: bytes) -> str | None:
    """All headers of that name, which read as one list; None where there is none."""
    values = [value for name, value in scope.get("headers", ()) if name == wanted]
    return b",".join(values).decode("latin-1") if values else None


def _x_forwarded_for(scope: Scope) -> Iterator[str] | None:
    """What `X-Forwarded-For` names, nearest hop first."""
    text = _header(scope, b"x-forwarded-for")
    return None if text is None else _from_the_right(text)


def _from_the_right(rest: str) -> Iterator[str]:
    for _ in range(MAX_HOPS):
        rest, comma, hop = rest.rpartition(",")
        if hop.strip() or comma:
            yield hop.strip()
        if not comma:
            return


def _forwarded(scope: Scope) -> list[str] | None:
    """What `Forwarded` names, nearest hop first; one that is no address where any of it is malformed.

    It is read from the left: only so can a quote that a client opens not hide what a proxy appended.
    """
    text = _header(scope, b"forwarded")
    if text is None:
        return None
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
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _trusted(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
