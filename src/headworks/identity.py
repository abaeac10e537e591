"""Who is asking: the client's address, and its standing by the key it sends.

Nothing a caller writes is believed by itself. Forwarding headers count only from trusted proxies,
and only as far as these reach. A key counts only if the policy's table or the resolver knows it;
every other caller is counted by its address, so that inventing keys gains nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from headworks.current import Criticality

log = logging.getLogger("headworks")

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str], Awaitable[str | None]]

MAX_KEY: Final = 256
"""Bytes a caller's key may have; longer ones are treated as unknown."""
MAX_HOPS: Final = 32
"""Forwarding hops looked at, counted from our side."""
NOWHERE: Final = "local"
"""The address of a peer that has none (a Unix socket)."""
FAILURE_TTL: Final = 1.0
"""Seconds for which a key is not asked about again after the resolver failed."""

_ADDRESS: Final = "headworks.address"
"""Where a request's scope keeps its client's address, with the identifier that worked it out."""


def client_address(scope: Scope, trust: Iterable[Network]) -> str:
    """The address a request is counted by.

    The peer's own, unless the peer is trusted: then `X-Forwarded-For` is walked from the right, past
    trusted hops only, and the first other address is the client. The walk ends early at anything
    malformed, with the last good hop. An IPv6 address stands for its whole /64, which is what one
    subscriber has.
    """
    client = scope.get("client")
    address = _parse(client[0]) if client else None
    if address is None:
        return NOWHERE
    networks = tuple(trust)
    if _trusted(address, networks):
        for hop in _hops(scope):
            found = _parse(hop)
            if found is None:
                break
            address = found
            if not _trusted(address, networks):
                break
    if address.version == 6:
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


def _hops(scope: Scope) -> Iterable[str]:
    """What `X-Forwarded-For` names, nearest hop first; several such headers read as one list."""
    headers = [value for name, value in scope.get("headers", ()) if name == b"x-forwarded-for"]
    rest = b",".join(headers).decode("latin-1")
    for _ in range(MAX_HOPS):
        rest, comma, hop = rest.rpartition(",")
        if hop.strip() or comma:
            yield hop.strip()
        if not comma:
            return


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


@dataclass(frozen=True, slots=True)
class Rank:
    """What a tier gives: its class under pressure, and its weight (≥ 1) in the vendor line."""

    criticality: Criticality = Criticality.DEFAULT
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller as the layers know it.

    tenant       whom limits and fair shares are kept for: a digest of a known key, else the address.
                 Bounded in length, and never a key as it was sent
    tier         name of the tier
    criticality  the tier's class under pressure
    weight       the tier's weight, ≥ 1
    known        whether the key is one the policy or the resolver vouches for
    address      the client's address
    """

    tenant: str
    tier: str
    criticality: Criticality
    weight: int
    known: bool
    address: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one key until `expires` (loop time); `tier` None: nobody vouches for it."""

    tier: str | None
    expires: float


class _Cache:
    """Remembers at most `size` entries, the newest; an expired entry is kept until it is pushed out."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[str, _Entry] = {}

    def get(self, digest: str) -> _Entry | None:
        return self._entries.get(digest)

    def put(self, digest: str, entry: _Entry) -> None:
        self._entries.pop(digest, None)
        while len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = entry

    def drop(self, digest: str) -> None:
        self._entries.pop(digest, None)

    def __len__(self) -> int:
        return len(self._entries)


class Identifier:
    """Tells who is asking, from a bounded cache at once or by asking the resolver.

    header        name of the header that carries the key
    tiers         rank of every tier by name; holds `default_tier`
    default_tier  the tier of everybody unknown
    keys          table of keys and their tiers, asked before the resolver
    resolve       async (key) -> name of a tier, or None for a key it does not know
    trust         networks whose forwarding headers are believed
    ttl           seconds an answer of the resolver is used, default 60; a known key whose answer
                  ran out keeps its tier while the resolver fails
    size          answers remembered, default 10,000; unknown keys have a memory of their own of the
                  same size and push no known key out
    timeout       seconds the resolver may take, default 1
    warn          called with a sentence when the resolver fails
    """

    def __init__(
        self,
        *,
        header: str,
        tiers: Mapping[str, Rank],
        default_tier: str,
        keys: Mapping[str, str] | None = None,
        resolve: Resolver | None = None,
        trust: Iterable[Network] = (),
        ttl: float = 60.0,
        size: int = 10_000,
        timeout: float = 1.0,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self._header = header.lower().encode("latin-1")
        self._tiers, self._default_tier = dict(tiers), default_tier
        self._table = {_digest(key.encode()): tier for key, tier in (keys or {}).items()}
        self._resolver, self._trust = resolve, tuple(trust)
        self._ttl, self._timeout, self._warn = ttl, timeout, warn
        self._known, self._unknown = _Cache(size), _Cache(size)
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    def identify(self, scope: Scope) -> Identity:
        """The caller by what is known already, without waiting; a key not known yet is nobody's."""
        key = self._key(scope)
        if key is None:
            return self._nobody(scope)
        digest = _digest(key)
        tier = self._table.get(digest)
        if tier is None:
            entry = self._known.get(digest)
            tier = entry.tier if entry else None
        return self._somebody(scope, digest, tier) if tier else self._nobody(scope)

    async def resolve(self, scope: Scope) -> Identity:
        """The caller, asking the resolver where nothing is known. Many at once with one key ask once.

        A resolver that fails or takes longer than `timeout` makes the caller nobody in particular:
        the default tier, counted by address. Never raises on account of the resolver.
        """
        key = self._key(scope)
        if key is None:
            return self._nobody(scope)
        digest = _digest(key)
        tier = self._table.get(digest)
        if tier is None and self._resolver is not None:
            fresh = self._fresh(digest)
            tier = fresh.tier if fresh else await self._lookup(key, digest)
        return self._somebody(scope, digest, tier) if tier else self._nobody(scope)

    def _key(self, scope: Scope) -> bytes | None:
        """The key as sent; None when absent, sent twice, too long, or no printable UTF-8."""
        sent = [value for name, value in scope.get("headers", ()) if name == self._header]
        key = sent[0].strip() if len(sent) == 1 else b""
        if not 0 < len(key) <= MAX_KEY:
            return None
        try:
            printable = key.decode().isprintable()
        except UnicodeDecodeError:
            return None
        return key if printable else None

    def _address(self, scope: Scope) -> str:
        """The client's address, worked out once per request."""
        kept = scope.get(_ADDRESS)
        if kept is None or kept[0] is not self:
            kept = scope[_ADDRESS] = (self, client_address(scope, self._trust))
        return str(kept[1])

    def _nobody(self, scope: Scope) -> Identity:
        address = self._address(scope)
        rank = self._tiers[self._default_tier]
        return Identity(
            f"ip:{address}", self._default_tier, rank.criticality, rank.weight, False, address
        )

    def _somebody(self, scope: Scope, digest: str, tier: str) -> Identity:
        address = self._address(scope)
        rank = self._tiers[tier]
        return Identity(f"key:{digest}", tier, rank.criticality, rank.weight, True, address)

    def _fresh(self, digest: str) -> _Entry | None:
        now = asyncio.get_running_loop().time()
        for cache in (self._known, self._unknown):
            entry = cache.get(digest)
            if entry is not None and entry.expires > now:
                return entry
        return None

    async def _lookup(self, key: bytes, digest: str) -> str | None:
        """The resolver's answer, from the one task that asks for this key."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(key.decode(), digest))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # Not `await task`: a caller who leaves must not take the answer from the others. The bound
        # holds even against a resolver that resists being cancelled.
        await asyncio.wait((task,), timeout=self._timeout * 2)
        return task.result() if task.done() and not task.cancelled() else None

    async def _ask(self, key: str, digest: str) -> str | None:
        assert self._resolver is not None
        ttl = self._ttl
        try:
            async with asyncio.timeout(self._timeout):
                tier = await self._resolver(key)
            if tier is not None and tier not in self._tiers:
                self._warn(f"the resolver named the tier {tier!r:.60}, which the policy does not have")
                tier = self._default_tier
        except Exception as error:  # whatever a resolver raises, its callers are served
            kind = type(error).__name__  # and no more: its text may hold the key
            reason = "took too long" if isinstance(error, TimeoutError) else f"raised {kind}"
            self._warn(f"the resolver {reason}; the caller is counted by address")
            ttl, stale = min(FAILURE_TTL, self._ttl), self._known.get(digest)
            tier = stale.tier if stale else None
        entry = _Entry(tier, asyncio.get_running_loop().time() + ttl)
        (self._known if tier else self._unknown).put(digest, entry)
        (self._unknown if tier else self._known).drop(digest)
        return tier


def _digest(key: bytes) -> str:
    """32 hexadecimal digits that stand for a key, in memory and in the store."""
    return hashlib.blake2b(key, digest_size=16).hexdigest()
