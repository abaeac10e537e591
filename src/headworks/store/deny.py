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

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from headworks.clock import loop_clock
from headworks.limits.shapes import Bucket, Shape
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
"""Keys remembered; the one that was asked for longest ago is forgotten first."""
FRESH = 0.02
"""Seconds for which a refusal that was just given is given again as it is, to whoever asks at once."""
LATELY = 1024
"""Refusals that are kept for that."""


def _most(shape: Shape) -> int:
    return shape.burst if isinstance(shape, Bucket) else shape.limit


class _Heard(NamedTuple):
    """A limit that refused: what was asked of which shape, what was answered, and when."""

    shape: Shape
    cost: int
    state: LimitState
    at: float

    def stands(self, now: float) -> bool:
        """Whether it still does."""
        return now < self.at + self.state.retry_after

    def later(self, ask: Ask, now: float) -> LimitState | None:
        """The state counted down to now; None where it does not refuse this ask."""
        shape, cost, (_, limit, window, _, left, reset, again), at = self
        name, _, asked, wanted = ask
        gone = now - at
        if wanted < cost or again <= gone or (shape is not asked and shape != asked):
            return None
        if gone >= reset:
            left, reset = _most(asked), gone
        state = (name, limit, window, False, left, reset - gone, again - gone)
        return tuple.__new__(LimitState, state)


_Place = str | tuple[str]
"""A key; by itself in a tuple for a cost that never fits: that refusal must not stand for others."""


def _place(ask: Ask) -> _Place:
    _, key, shape, cost = ask
    return (key,) if cost > _most(shape) else key


def _final(asks: Sequence[Ask]) -> bool:
    return all(type(ask) is FinalAsk for ask in asks)


class DenyCache:
    """A store in front of another one, which hears of a denied caller only when it may have changed.

    size  keys remembered, ≥ 1, default 10,000
    """

    def __init__(self, inner: Store, *, size: int = SIZE) -> None:
        self._inner, self._size, self._now = inner, size, loop_clock()
        self._heard: OrderedDict[_Place, _Heard] = OrderedDict()
        self._lately: dict[int, tuple[Sequence[Ask], Verdict, float]] = {}
        self._questions = 0
        self._hears = self._hear

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._heard)

    async def ask(self, question: Question) -> Verdict:
        asks, horizon, gate, _, demand = question
        if horizon > 0 or gate is not None or demand > 0:
            return await self._inner.ask(question)
        now = self._now()
        if self._heard and (known := self._known(asks, now)) is not None:
            return known
        verdict = await self._inner.ask(question)
        self._hear(asks, now, verdict)
        return verdict

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """Whatever is known is for `known_nowait` to tell. Only one can learn: where somebody else is
        to, this is for tasks."""
        return first is None and self._inner.put(question, to, self._hears)

    def _hear(self, asks: Sequence[Ask], asked_at: float, verdict: Verdict) -> None:
        if not verdict[0] and not verdict.degraded and _final(asks):
            self._remember(asks, verdict, asked_at)

    def known_nowait(self, asks: Sequence[Ask]) -> Verdict | None:
        """The refusal that `ask` would answer with from here, None where it would ask the store.

        The same asks, object for object, are given the same verdict for `FRESH` seconds: what counts
        down in it does so in steps of that length, and its time never ends later.
        """
        if not self._heard:
            return None
        now, lately = self._now(), self._lately.get(id(asks))
        if lately is not None and lately[0] is asks and now < lately[2]:
            self._questions += 1
            return lately[1]
        verdict = self._known(asks, now)
        if verdict is not None:
            if len(self._lately) >= LATELY:
                self._lately.clear()
            self._lately[id(asks)] = (asks, verdict, now + min(FRESH, verdict.retry_after))
        return verdict

    def _known(self, asks: Sequence[Ask], now: float) -> Verdict | None:
        """The refusal, when one limit is known to refuse."""
        heard, places, states, again = self._heard, [], [], 0.0
        for ask in asks:
            if type(ask) is not FinalAsk or not ask[3]:
                return None
            place = _place(ask)
            one = heard.get(place)
            if one is None or (state := one.later(ask, now)) is None:
                continue
            places.append(place)
            states.append(state)
            if state[6] > again:
                again = state[6]
        if not again:
            return None
        for place in places:
            heard.move_to_end(place)
        self._questions += 1
        return Verdict(False, again, tuple(states))

    def _remember(self, asks: Sequence[Ask], verdict: Verdict, now: float) -> None:
        for ask, state in zip(asks, verdict.limits, strict=False):
            if state.allowed or not ask.cost:
                continue
            place = _place(ask)
            old = self._heard.get(place)
            if old is None or old.cost >= ask.cost or old.shape != ask.shape or not old.stands(now):
                self._heard[place] = _Heard(ask.shape, ask.cost, state, now)
                self._heard.move_to_end(place)
        while len(self._heard) > self._size:
            self._heard.popitem(last=False)

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
            self._heard.pop(key, None)
            self._heard.pop((key,), None)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def statistics(self) -> StoreStatistics:
        """The inner store's, with the questions that were answered here."""
        inner = self._inner.statistics()
        return replace(inner, questions=inner.questions + self._questions)
