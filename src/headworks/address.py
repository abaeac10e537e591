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
Address = tuple[int, bytes, str]
"""Version, its bytes, and what is counted by it: the address itself, or of IPv6 its /64."""

MAX_HOPS: Final = 32
"""Forwarding hops looked at, counted from our side."""
MAX_FORWARDED: Final = 8192
"""Bytes of `Forwarded` that are parsed; a longer one is not believed."""
MAX_PEERS: Final = 1000
"""Peers remembered at once."""
MAX_PEER: Final = 64
"""Characters of a peer that is remembered; a server may take what it calls the peer out of a header."""
NOWHERE: Final[Address] = (0, b"", "local")
"""The address of a peer that has none (a Unix socket); no network holds it."""

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

    __slots__ = ("_masks", "_peers")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._peers: dict[str, tuple[Address, bool]] = {}
        self._masks: dict[int, list[tuple[int, int]]] = {NOWHERE[0]: [], 4: [], 6: []}
        for network in networks:
            masks = self._masks[network.version]
            masks.append((int(network.netmask), int(network.network_address)))

    def holds(self, address: Address) -> bool:
        """Whether the address is within one of them."""
        version, packed, _ = address
        number = int.from_bytes(packed)
        for mask, network in self._masks[version]:  # noqa: SIM110  # any() takes twice as long
            if number & mask == network:
                return True
        return False

    def peer(self, text: str) -> tuple[Address, bool]:
        """A peer's address, and whether it is within one of them. Remembered: most peers are gateways,
        and those are few."""
        known = self._peers.get(text)
        if known is None:
            address = _parse(text) or NOWHERE
            known = address, self.holds(address)
            if len(text) <= MAX_PEER:
                if len(self._peers) >= MAX_PEERS:
                    self._peers.clear()
                self._peers[text] = known
        return known


def client_of(scope: Scope, trust: Trust) -> tuple[Address, bool]:
    """The address a request is counted by, and whether what was forwarded was read to its end and spoke
    with one voice.

    The peer's own, unless the peer is trusted: then what proxies forwarded is walked from our side,
    past trusted hops only, and the first other address is the client. The walk ends early at anything
    that is no address, with the last good hop. An IPv6 address stands for its whole /64, which is what
    one subscriber has.

    `X-Forwarded-For` and `Forwarded` (RFC 7239) are both read, several of one name as one list. A proxy
    writes one of them and passes the other on as it came, so where both are there and name two clients,
    neither is believed, and the request is counted by the peer; so is one whose `Forwarded` is
    malformed, anywhere.
    """
    client = scope.get("client")
    peer, trusted = trust.peer(client[0]) if client else (NOWHERE, False)
    if not trusted:
        return peer, True
    by: bytes | None = None
    rfc: bytes | None = None
    for name, value in scope.get("headers", ()):
        if name == b"x-forwarded-for":
            by = value if by is None else by + b"," + value
        elif name == b"forwarded":
            rfc = value if rfc is None else rfc + b"," + value
    if rfc is None:
        if by is None:
            return peer, True
        text = by.decode("latin-1")
        # One hop, as nearly always, ends the walk wherever it is; where it is none, the walk says so.
        alone = None if "," in text else _parse(text)
        return _walk(peer, _from_the_right(text), trust) if alone is None else (alone, True)
    named, sure = _walk(peer, _forwarded(rfc.decode("latin-1")), trust)
    if by is not None:
        other, also = _walk(peer, _from_the_right(by.decode("latin-1")), trust)
        if other[2] != named[2]:
            return peer, False
        sure = sure and also
    return named, sure


def client_within(scope: Scope, trust: Trust) -> bool:
    """Whether the client itself is within these networks: every hop is, and nothing that was forwarded
    left any doubt of it. Whoever is counted by the peer for want of anything better is not."""
    address, sure = client_of(scope, trust)
    return sure and trust.holds(address)


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
        return 4, inet_pton(AF_INET, text), text
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
            return 6, address.packed, f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
        address = address.ipv4_mapped
    return 4, address.packed, str(address)
