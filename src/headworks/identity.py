"""Who is asking: a caller's standing by the key it sends, else its address.

A key counts only if the policy's table or the resolver knows it; every other caller is counted by its
address, so that inventing keys gains nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Final

from headworks.address import Network, Scope, Trust, client_of
from headworks.current import Criticality

log = logging.getLogger("headworks")

MAX_KEY: Final = 256
"""Bytes a caller's key may have; longer ones are treated as unknown."""
MAX_ASKING: Final = 1000
"""Keys the resolver is asked about at once; beyond it, a key not seen before is nobody's for now."""
UNKNOWN_TTL: Final = 10.0
"""Seconds for which a key is not asked about again after the resolver did not know it, at most."""
FAILURE_TTL: Final = 1.0
"""Seconds for which a key is not asked about again after the resolver failed."""

_SEEN: Final = "headworks.identity"
"""Where a request's scope keeps its identity, with the `Callers` that it was told by."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a key is.

    tier    name of its tier
    tenant  the organisation it belongs to, whose keys share the tenant's limits and its part of a
            vendor's line; None: it stands for itself
    """

    tier: str
    tenant: str | None = None


Resolver = Callable[[str], Awaitable[str | Caller | None]]
"""async (key) -> its caller, or only the name of its tier, or None for a key it does not know."""


@dataclass(frozen=True, slots=True)
class Rank:
    """What a tier gives: its class under pressure, and its weight (≥ 1) in the vendor line."""

    criticality: Criticality = Criticality.DEFAULT
    weight: int = 1


@dataclass(slots=True)  # not frozen, which makes one in a third of the time: a stranger's is made anew
class Identity:
    """A caller as the layers know it. Nobody changes one.

    user         whom its own limits are kept for: a digest of a known key, else the address. Bounded in
                 length, and never a key as it was sent
    tenant       whom it shares with: a digest of its organisation, else the same as `user`
    tier         name of the tier
    criticality  the tier's class under pressure
    weight       the tier's weight, ≥ 1
    known        whether the key is one the policy or the resolver vouches for
    """

    user: str
    tenant: str
    tier: str
    criticality: Criticality
    weight: int
    known: bool


class Callers:
    """What a policy says of callers; exchanged as a whole when the policy is.

    header        name of the header that carries the key
    tiers         rank of every tier by name; holds `default_tier`
    default_tier  the tier of everybody unknown
    keys          table of keys and whose they are (or only their tiers), asked before the resolver; by
                  digest in `table`, and as sent in `as_sent`, where no digest is needed to find one
    trust         networks whose forwarding headers are believed
    ttl           seconds an answer of the resolver is used, default 60 (at most 10 where it did not
                  know the key); a known key whose answer ran out keeps it while the resolver fails
    size          answers remembered, default 10,000; unknown keys have a memory of their own of the
                  same size and push no known key out
    """

    def __init__(
        self,
        *,
        header: str,
        tiers: Mapping[str, Rank],
        default_tier: str,
        keys: Mapping[str, str | Caller] | None = None,
        trust: Iterable[Network] = (),
        ttl: float = 60.0,
        size: int = 10_000,
    ) -> None:
        self.header = header.lower().encode("latin-1")
        self.tiers, self.default_tier = dict(tiers), default_tier
        self._rank = self.tiers[default_tier]
        self.trust, self.ttl, self.size = Trust(trust), ttl, size
        self.table: dict[str, Identity] = {}
        self.as_sent: dict[bytes, Identity] = {}
        for key, caller in (keys or {}).items():
            sent, digest = key.encode(), digest_of(key.encode())
            caller = caller if isinstance(caller, Caller) else Caller(caller)
            self.table[digest] = self.somebody(digest, caller)
            if _readable(sent) == sent:  # the policy has it in the clear: nothing is given away
                self.as_sent[sent] = self.table[digest]

    def somebody(self, digest: str, caller: Caller) -> Identity:
        """The owner of a known key; a tier the policy does not have is the default one."""
        tier = caller.tier if caller.tier in self.tiers else self.default_tier
        rank, user = self.tiers[tier], f"key:{digest}"
        tenant = user if not caller.tenant else f"org:{digest_of(caller.tenant.encode())}"
        return Identity(user, tenant, tier, rank.criticality, rank.weight, True)

    def nobody(self, scope: Scope) -> Identity:
        """A caller nobody vouches for, counted by address."""
        (_, _, address), _ = client_of(scope, self.trust)
        user, rank = f"ip:{address}", self._rank
        return Identity(user, user, self.default_tier, rank.criticality, rank.weight, False)

    def sent(self, scope: Scope) -> bytes | None:
        """The value of the header that carries the key; None when there are none or several."""
        found, wanted = None, self.header
        for name, value in scope.get("headers", ()):
            if name == wanted:
                if found is not None:
                    return None
                found = value
        return found


def _readable(sent: bytes) -> bytes | None:
    """A key as it was sent; None when it is too long, or no printable UTF-8."""
    key = sent.strip()
    if not 0 < len(key) <= MAX_KEY:
        return None
    try:
        printable = key.decode().isprintable()
    except UnicodeDecodeError:
        return None
    return key if printable else None


class _Entry:
    """What is known of one key until `expires` (loop time); `caller` None: nobody vouches for it."""

    __slots__ = ("_callers", "_identity", "caller", "expires")

    def __init__(self, caller: Caller | None, expires: float) -> None:
        self.caller, self.expires = caller, expires
        self._callers: Callers | None = None

    def identity(self, callers: Callers, digest: str) -> Identity | None:
        if self.caller is None:
            return None
        if self._callers is not callers:
            self._callers, self._identity = callers, callers.somebody(digest, self.caller)
        return self._identity


class _Cache:
    """Remembers at most so many entries, the newest; an expired one is kept until it is pushed out."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def get(self, digest: str) -> _Entry | None:
        return self._entries.get(digest)

    def put(self, digest: str, entry: _Entry, size: int) -> None:
        self._entries.pop(digest, None)
        while len(self._entries) >= size:
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = entry

    def drop(self, digest: str) -> None:
        self._entries.pop(digest, None)

    def __len__(self) -> int:
        return len(self._entries)


class Identifier:
    """Tells who is asking, from a bounded cache at once or by asking the resolver.

    callers  what the policy says of callers; may be exchanged while requests are served, and what the
             resolver has said stays known
    resolve  asked about keys that the policy's table does not have
    timeout  seconds the resolver may take, default 1
    warn     called with a sentence when the resolver fails
    """

    def __init__(
        self,
        callers: Callers,
        *,
        resolve: Resolver | None = None,
        timeout: float = 1.0,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.callers = callers
        self._resolver, self._timeout, self._warn = resolve, timeout, warn
        self._known, self._unknown = _Cache(), _Cache()
        self._asking: dict[str, asyncio.Task[_Entry | None]] = {}

    def identify(self, scope: Scope) -> Identity:
        """The caller by what is known already, without waiting; a key not known yet is nobody's."""
        seen = scope.get(_SEEN)
        if seen is not None and seen[0] is self.callers:
            known: Identity = seen[1]
            return known
        return self.tell(scope)[0]

    def tell(self, scope: Scope) -> tuple[Identity, bool]:
        """The same of a request not seen yet, and whether that is sure: no resolver would say other."""
        callers, sure = self.callers, True
        sent = callers.sent(scope)
        if sent is None:
            identity = callers.nobody(scope)
        elif (known := callers.as_sent.get(sent)) is not None:
            identity = known
        else:
            identity, sure = self._by_digest(scope, callers, sent)
        if sure:
            scope[_SEEN] = (callers, identity)
        return identity, sure

    def _by_digest(self, scope: Scope, callers: Callers, sent: bytes) -> tuple[Identity, bool]:
        key = _readable(sent)
        if key is None:
            return callers.nobody(scope), True
        digest = digest_of(key)
        found = callers.table.get(digest)
        sure = found is not None or self._resolver is None
        if found is None and (entry := self._known.get(digest)) is not None:
            found = entry.identity(callers, digest)
            sure = entry.expires > asyncio.get_running_loop().time()
        return found or callers.nobody(scope), sure

    async def resolve(self, scope: Scope, callers: Callers | None = None) -> Identity:
        """The caller, asking the resolver where nothing is known. Many at once with one key ask once.

        callers  what to go by; default: the newest

        A resolver that fails or takes longer than `timeout` makes the caller nobody in particular:
        the default tier, counted by address. Never raises on account of the resolver.
        """
        callers = callers or self.callers
        seen = scope.get(_SEEN)
        if seen is not None and seen[0] is callers:
            known: Identity = seen[1]
            return known
        sent = callers.sent(scope)
        key = None if sent is None else _readable(sent)
        if key is None:
            return callers.nobody(scope)
        digest = digest_of(key)
        found = callers.table.get(digest)
        if found is None and self._resolver is not None:
            entry = self._fresh(digest) or await self._lookup(key, digest)
            found = entry.identity(callers, digest) if entry else None
        return found or callers.nobody(scope)

    def _fresh(self, digest: str) -> _Entry | None:
        now = asyncio.get_running_loop().time()
        for cache in (self._known, self._unknown):
            entry = cache.get(digest)
            if entry is not None and entry.expires > now:
                return entry
        return None

    async def _lookup(self, key: bytes, digest: str) -> _Entry | None:
        """The resolver's answer, from the one task that asks for this key."""
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= MAX_ASKING:
                return self._known.get(digest)
            # In an empty context: the answer is everybody's, not a part of whose request came first.
            asking = self._ask(key.decode(), digest)
            task = asyncio.get_running_loop().create_task(asking, context=Context())
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # Not `await task`: a caller who leaves must not take the answer from the others. The bound
        # holds even against a resolver that resists being cancelled.
        await asyncio.wait((task,), timeout=self._timeout * 2)
        return task.result() if task.done() and not task.cancelled() else None

    async def _ask(self, key: str, digest: str) -> _Entry:
        assert self._resolver is not None
        caller: Caller | None
        try:
            async with asyncio.timeout(self._timeout):
                caller = self._read(await self._resolver(key))
            ttl = self.callers.ttl if caller else min(UNKNOWN_TTL, self.callers.ttl)
        except Exception as error:  # whatever a resolver raises, its callers are served
            # Only its kind: libraries like to quote what they were given, and that is a secret here.
            name = type(error).__qualname__
            reason = "took too long" if isinstance(error, TimeoutError) else f"raised {name}"
            self._warn(f"the resolver {reason}; a key not known before is counted by address")
            ttl, stale = min(FAILURE_TTL, self.callers.ttl), self._known.get(digest)
            caller = stale.caller if stale else None
        entry = _Entry(caller, asyncio.get_running_loop().time() + ttl)
        (self._known if caller else self._unknown).put(digest, entry, self.callers.size)
        (self._unknown if caller else self._known).drop(digest)
        return entry

    def _read(self, answer: str | Caller | None) -> Caller | None:
        """What the resolver answered; `TypeError` where that is nothing it may answer."""
        caller = Caller(answer) if isinstance(answer, str) else answer
        if caller is None:
            return None
        fields = (caller.tier, caller.tenant or "") if isinstance(caller, Caller) else (None,)
        if not all(isinstance(field, str) for field in fields):
            raise TypeError(f"a {type(answer).__name__}, where a tier, a Caller or None belongs")
        (caller.tenant or "").encode()  # half a surrogate, as JSON can hold it, is no name
        if caller.tier not in self.callers.tiers:
            self._warn(
                f"the resolver named the tier {caller.tier!r:.60}, which the policy does not have"
            )
        return caller


def digest_of(key: bytes) -> str:
    """32 hexadecimal digits that stand for a key, in memory and in the store."""
    return hashlib.blake2b(key, digest_size=16).hexdigest()
