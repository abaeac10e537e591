"""The limiter by itself, for whoever wants nothing else of headworks: no policy, no web framework.

    Limiter   one limit on many keys
    Limits    several limits in one question: all of them consume, or none does
    Places    so many holders at a time, of anything, across processes

Every answer is a `Verdict`; a refusal is one, too, never an exception. State stands under
"{key}:name", so limits on one key share a slot of a cluster, and limiters of one name share a state.

Whatever is booked and then not used goes back: on cancellation at any await, in the background, by
the `Reaper`. `aclose` waits for that; it does not close the store, which may have other users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from headworks.cleanup import Reaper, shielded
from headworks.limits.shapes import Shape
from headworks.limits.text import shape_of
from headworks.store.deny import DenyCache
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, FinalAsk, Question, Report, Store, StoreDown
from headworks.verdict import Verdict

Cost = int | Mapping[str, int]

DRAIN = 2.0
"""Seconds that a give-back may take, whatever happens to its caller."""


class Limits:
    """Several limits, asked in one question.

    store  where their state is kept
    rates  by name: "100/min" (a window), "10/s burst 5" (a bucket), or a shape
    final  nobody ever gives anything back under these names: a refusal then stands until its time, is
           repeated from memory, and a flood on a key that is over its limit costs the server nothing.
           `wait`, `give_back` and `settle` are refused; default False

    A `cost` is units of every limit, or of some by name; limits it does not name are not asked. Units
    are whole and ≥ 0. A wrong one raises `ValueError`, and so does an empty key.
    """

    def __init__(self, store: Store, rates: Mapping[str, str | Shape], *, final: bool = False) -> None:
        if not rates:
            raise ValueError('rates: {} names no limit; give one at least, such as {"user": "100/min"}')
        self._store = DenyCache(store) if final and not isinstance(store, MemoryStore) else store
        self._final, self._kind = final, FinalAsk if final else Ask
        self._shapes = {name: shape_of(rate) for name, rate in rates.items()}
        self._reaper = Reaper()

    async def take(self, key: str, cost: Cost = 1) -> Verdict:
        """Consume `cost` now, or nothing; the verdict says which."""
        return await self._store.ask(Question(self._asks(key, cost)))

    async def peek(self, key: str) -> Verdict:
        """Every limit as it stands. Costs nothing."""
        return await self.take(key, 0)

    async def wait(self, key: str, cost: Cost = 1, *, timeout: float) -> Verdict:
        """Book the earliest time at which `cost` fits, and return when it has come.

        timeout  seconds ≥ 0 that may be waited. Where that is not enough, the refusal comes at once
                 and nothing is booked; its `retry_after` says when the same call would do.

        Bookings are kept in the order in which they were made. A cancelled wait gives its own back.
        """
        if not timeout >= 0:
            raise ValueError(f"timeout: {timeout} s; what may be waited is ≥ 0")
        self._not_final("wait")
        question = Question(self._asks(key, cost), horizon=timeout)
        verdict = await self._booked(question)
        if verdict.allowed and verdict.wait > 0:
            try:
                await asyncio.sleep(verdict.wait)
            except asyncio.CancelledError:
                self._reaper.hand_over("booking", lambda: self._return(question, verdict))
                raise
        return verdict

    async def _booked(self, question: Question) -> Verdict:
        """The verdict; a booking whose asker is cancelled before he hears of it is given back."""
        if isinstance(self._store, MemoryStore):
            return self._store.ask_nowait(question)
        asking = asyncio.create_task(self._store.ask(question), name="booking")
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:

            async def give_back() -> None:
                with suppress(StoreDown):  # it was not booked, or nobody can tell
                    await self._return(question, await asking)

            self._reaper.hand_over("booking", give_back)
            raise

    async def _return(self, question: Question, verdict: Verdict) -> None:
        if not verdict.allowed or verdict.degraded:
            return
        backs = tuple(
            Correction(key, shape, -cost, verdict.at_us) for _, key, shape, cost in question.asks if cost
        )
        await self._report(backs)

    async def give_back(self, key: str, verdict: Verdict, cost: Cost = 1) -> None:
        """Return what `verdict` took under `key` and nobody used: the same key, the same cost.

        A window takes it back into the sub-bucket it came from; a bucket as far as it has been busy
        since. A refusal took nothing, and a verdict reached without the store took nothing there:
        both are returned for nothing. It finishes even if its caller is cancelled meanwhile.
        """
        self._not_final("give_back")
        question = Question(self._asks(key, cost))
        await shielded(self._return(question, verdict), timeout=DRAIN)

    async def settle(self, key: str, verdict: Verdict, *, estimated: Cost, actual: Cost) -> None:
        """What `verdict` paid as `estimated` really cost `actual`.

        More is charged on top, even past the limit, and later questions wait until it is paid; less
        comes back as by `give_back`.
        """
        self._not_final("settle")
        paid = {ask.name: ask.cost for ask in self._asks(key, estimated)}
        owed = {ask.name: ask for ask in self._asks(key, actual)}
        if paid.keys() != owed.keys():
            raise ValueError(f"actual: {sorted(owed)} differ from the limits estimated, {sorted(paid)}")
        changes = tuple(
            Correction(ask.key, ask.shape, ask.cost - paid[name], verdict.at_us)
            for name, ask in owed.items()
            if ask.cost != paid[name]
        )
        if changes and verdict.allowed and not verdict.degraded:
            await shielded(self._report(changes), timeout=DRAIN)

    def _not_final(self, what: str) -> None:
        if self._final:
            raise RuntimeError(
                f"{what}() may give back, and with final=True nothing is; leave final out"
            )

    async def _report(self, changes: tuple[Correction, ...]) -> None:
        await self._store.report(Report(changes))

    async def forget(self, key: str) -> None:
        """Forget what was taken under `key`, of every limit here."""
        await self._store.forget([_place(key, name) for name in self._shapes])

    async def aclose(self) -> None:
        """Wait for what is being given back, two seconds at most."""
        await self._reaper.drain(DRAIN)

    def _asks(self, key: str, cost: Cost) -> tuple[Ask, ...]:
        if isinstance(cost, int):
            return tuple(self._ask(key, name, shape, cost) for name, shape in self._shapes.items())
        if unknown := sorted(cost.keys() - self._shapes.keys()):
            raise ValueError(f"cost: there is no limit {unknown[0]!r}; there are {sorted(self._shapes)}")
        return tuple(self._ask(key, name, self._shapes[name], units) for name, units in cost.items())

    def _ask(self, key: str, name: str, shape: Shape, cost: int) -> Ask:
        if cost < 0 or isinstance(cost, bool):
            raise ValueError(f"cost: {cost!r}; a cost is whole and ≥ 0 (0 peeks, give_back returns)")
        return self._kind(name, _place(key, name), shape, cost)


class Limiter(Limits):
    """One limit on many keys.

    store  where its state is kept
    rate   "100/min" (a window), "10/s burst 5" (a bucket), or a shape
    name   what verdicts call it; limiters of one name share their keys' state
    final  as in `Limits`
    """

    def __init__(
        self, store: Store, rate: str | Shape, *, name: str = "limit", final: bool = False
    ) -> None:
        super().__init__(store, {name: rate}, final=final)
        self._name, self._shape, self._end = name, self._shapes[name], "}:" + name
        self._take = store.taking(self._shape) if isinstance(store, MemoryStore) else None

    async def take(self, key: str, cost: Cost = 1) -> Verdict:
        """Consume `cost` now, or nothing; the verdict says which."""
        if not key or type(cost) is not int or cost < 0:
            return await super().take(key, cost)  # which says what is wrong
        place = f"{{{key}{self._end}"
        if self._take is not None and (verdict := self._take(self._name, place, cost)) is not None:
            return verdict
        return await self._store.ask(Question((self._kind(self._name, place, self._shape, cost),)))


def _place(key: str, name: str) -> str:
    if not key:
        raise ValueError("key: '' is empty; name whoever the limit is for, such as a user's id")
    return f"{{{key}}}:{name}"


class Place:
    """A place that is held: `held` as long as its lease stands, renewed in the background.

    fence  a number greater than that of whoever held a place before; what is written elsewhere can
           carry it, so that a holder that was held up is told from its successor
    lost   set when the lease has run out without being renewed
    """

    def __init__(self) -> None:
        self._until = 0.0
        self.fence = 0
        self.lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether the lease stands now. Once it is lost, somebody else may have the place."""
        return self.left > 0

    @property
    def left(self) -> float:
        """Seconds until the lease runs out, should it not be renewed."""
        return max(0.0, self._until - asyncio.get_running_loop().time())


class Places:
    """So many holders at a time.

    store   where the leases are kept
    name    what is held
    limit   holders at a time, ≥ 1
    holder  the name of this process, unlike any other's
    ttl     seconds after which the place of a process that died is free, default 15
    """

    def __init__(self, store: Store, name: str, limit: int, *, holder: str, ttl: float = 15.0) -> None:
        if limit < 1:
            raise ValueError(f"limit: {limit} places; one at least")
        if not ttl > 0:
            raise ValueError(f"ttl: {ttl} s; a lease lasts some time, 15 s for example")
        self._store, self._name, self._limit, self._ttl = store, name, limit, ttl
        self._holder, self._held = holder, 0
        self._reaper = Reaper()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Place | None]:
        """Hold a place for the block, None when there is none now. It is returned at the end."""
        self._held += 1
        holder, place, refused = f"{self._holder}/{self._held}", Place(), False
        try:
            refused = not await self._renew(holder, place)
            if refused:
                yield None
                return
            beating = asyncio.create_task(self._beat(holder, place), name=f"lease {self._name}")
            try:
                yield place
            finally:
                beating.cancel()
        finally:
            place._until = 0.0
            if not refused:  # also when it was asked for and the answer never heard
                self._reaper.hand_over(
                    f"lease {self._name}", lambda: self._store.release(self._name, holder=holder)
                )

    async def _renew(self, holder: str, place: Place) -> bool:
        until = asyncio.get_running_loop().time() + self._ttl  # the store's own count begins later
        fence = await self._store.lease(self._name, holder=holder, limit=self._limit, ttl=self._ttl)
        if fence and place.fence in (0, fence):  # another fence: it ran out and was begun anew
            place._until, place.fence = until, fence
        return fence > 0

    async def _beat(self, holder: str, place: Place) -> None:
        """Renew three times per lease. A store that is away is asked again: the lease may outlast it."""
        while place.held:
            await asyncio.sleep(min(self._ttl / 3, place.left))
            with suppress(StoreDown, TimeoutError):
                async with asyncio.timeout(min(self._ttl / 3, place.left)):
                    await self._renew(holder, place)
        place.lost.set()

    async def aclose(self) -> None:
        """Wait for the places being returned, two seconds at most."""
        await self._reaper.drain(DRAIN)
