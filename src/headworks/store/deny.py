"""What the store has refused is refused here, until it could fit: a flood costs the store nothing.

    kept per key    the limit's shape, the smallest refused cost c, and when c could fit
    answered here   a cost ≥ c of the same shape, before that time

Only for asks of which nothing is ever given back (`FinalAsk`): then room can only shrink until time
frees it, and whoever asks for at least c before that would be refused by the store, too. A smaller
cost, a peek, a question with a gate or a horizon, and a limit that has changed go to the store. Time
counts from before the question was put, so nothing is refused here longer than the store would.

One limit that is known to refuse is enough: who has never come before is refused by a limit that all
share without a question, and a flood from everywhere costs the store as little as one from a single
caller. Such a refusal tells of the limits that refuse, and of no other: what the store once said is left
of those may be gone. `reset` and `retry_after` count down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headworks.clock import loop_clock
from headworks.limits.shapes import Mark
from headworks.store.protocol import (
    Ask,
    FinalAsk,
    Hears,
    Learns,
    Question,
    Report,
    Standing,
    Store,
    StoreStatistics,
)
from headworks.verdict import LimitState, Verdict

SIZE = 10_000
"""Keys remembered at most; the half of it that was asked for last is never forgotten."""
FRESH = 0.02
"""Seconds for which a refusal that was just given is given again as it is, to whoever asks at once."""
LATELY = 1024
"""Refusals that are kept for that."""

_Heard = tuple[Mark, int, int, float, float, float]
"""Of a limit that refused: its shape's mark, what was asked for, what was left, after how many seconds
it would be unused and the cost would fit, and from when those count. Numbers and text alone, which the
garbage collector does not look through: there are thousands of these."""
_Place = str | tuple[str]
"""A key; by itself in a tuple for a cost that never fits: that refusal must not stand for others."""
_Found = tuple[Ask, _Place, _Heard]

_new = tuple.__new__
"""Fills a named tuple in a third of the time its own constructor takes."""


class DenyCache:
    """A store in front of another one, which hears of a denied caller only when it may have changed.

    size  keys remembered at most, ≥ 2, default 10,000

    They are of two generations. Who is asked for is among the young; when those are half of `size`,
    they become the old ones, and the old ones are forgotten together. So a flood of strangers drives out
    nobody who is asked for again within half of `size` others.
    """

    def __init__(self, inner: Store, *, size: int = SIZE) -> None:
        if size < 2:
            raise ValueError(f"size: {size}; two keys at least are remembered")
        self._inner, self._half, self._now = inner, size // 2, loop_clock()
        self._young: dict[_Place, _Heard] = {}
        self._old: dict[_Place, _Heard] = {}
        self._lately: dict[int, tuple[Sequence[Ask], Verdict, float]] = {}
        self._questions = 0
        self._hears = self._hear

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._young) + len(self._old)

    async def ask(self, question: Question) -> Verdict:
        asks, horizon, gate, _, demand = question
        if horizon > 0 or gate is not None or demand > 0:
            return await self._inner.ask(question)
        now, found = self._now(), self._found(asks)
        if found and (known := self._told(found, now)) is not None:
            return known
        verdict = await self._inner.ask(question)
        self._hear(asks, now, verdict)
        return verdict

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """Whatever is known is for `known_nowait` to tell. Only one can learn: where somebody else is
        to, this is for tasks."""
        return first is None and self._inner.put(question, to, self._hears)

    def known_nowait(self, asks: Sequence[Ask]) -> Verdict | None:
        """The refusal that `ask` would answer with from here, None where it would ask the store.

        The same asks, object for object, are given the same verdict for `FRESH` seconds: what counts
        down in it does so in steps of that length, and its time never ends later.
        """
        if not self._young and not self._old:
            return None
        lately = self._lately.get(id(asks))
        if lately is not None and lately[0] is asks and self._now() < lately[2]:
            self._questions += 1
            return lately[1]
        found = self._found(asks)
        if not found:
            return None
        now = self._now()
        verdict = self._told(found, now)
        if verdict is not None:
            if len(self._lately) >= LATELY:
                self._lately.clear()
            self._lately[id(asks)] = (asks, verdict, now + min(FRESH, verdict.retry_after))
        return verdict

    def _found(self, asks: Sequence[Ask]) -> list[_Found]:
        """What is remembered of their limits; nothing, where the store is to be asked in any case."""
        young, old = self._young, self._old
        found: list[_Found] = []
        for ask in asks:
            _, key, shape, cost = ask
            if type(ask) is not FinalAsk or not cost:
                return []
            place = key if cost <= shape.most else (key,)
            one = young.get(place) or old.get(place)
            if one is not None:
                found.append((ask, place, one))
        return found

    def _told(self, found: list[_Found], now: float) -> Verdict | None:
        """The refusal, counted down to now, when one limit still refuses."""
        states, again = [], 0.0
        for (name, _, asked, wanted), place, one in found:
            mark, cost, left, reset, wait, at = one
            gone = now - at
            if wanted < cost or wait <= gone or mark != asked.mark:
                continue
            if gone >= reset:
                left, reset = asked.most, gone
            wait -= gone
            state = (name, asked.limit, asked.period, False, left, reset - gone, wait)
            states.append(_new(LimitState, state))
            if wait > again:
                again = wait
            if place not in self._young:
                self._old.pop(place, None)
                young = self._young if len(self._young) < self._half else self._turn()
                young[place] = one
        if not states:
            return None
        self._questions += 1
        return _new(Verdict, (False, again, tuple(states), 0.0, 0, 0, 0, None, 0.0, False))

    def _hear(self, asks: Sequence[Ask], asked_at: float, verdict: Verdict) -> None:
        """Remember the limits that refuse, each with the smallest cost that it has refused."""
        if verdict[0] or verdict[9]:
            return
        young = self._young
        for i, (_, _, _, fits, left, reset, wait) in enumerate(verdict[2]):
            ask = asks[i]
            _, key, shape, cost = ask
            if fits or not cost or type(ask) is not FinalAsk:
                continue
            place = key if cost <= shape.most else (key,)
            one = young.get(place) or self._old.pop(place, None)
            if one is None or one[1] >= cost or one[0] != shape.mark or one[5] + one[4] <= asked_at:
                one = (shape.mark, cost, left, reset, wait, asked_at)
            if len(young) >= self._half and place not in young:
                young = self._turn()
            young[place] = one

    def _turn(self) -> dict[_Place, _Heard]:
        """The young are half of all: they become the old ones, and who was old is forgotten, as nobody
        has asked for it since."""
        self._old, self._young = self._young, {}
        return self._young

    async def report(self, report: Report) -> Standing:
        self._forget([correction.key for correction in report.corrections])
        return await self._inner.report(report)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        return await self._inner.lease(key, holder=holder, limit=limit, ttl=ttl)

    async def release(self, key: str, *, holder: str) -> None:
        await self._inner.release(key, holder=holder)

    async def forget(self, keys: Sequence[str]) -> None:
        """Forget here and in the store; other processes remember until what they heard is over."""
        await self._inner.forget(keys)
        self._forget(keys)

    def _forget(self, keys: Sequence[str]) -> None:
        self._lately.clear()
        for key in keys:
            for heard in (self._young, self._old):
                heard.pop(key, None)
                heard.pop((key,), None)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def statistics(self) -> StoreStatistics:
        """The inner store's, with the questions that were answered here."""
        inner = self._inner.statistics()
        return replace(inner, questions=inner.questions + self._questions)
