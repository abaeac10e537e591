"""An outbound call, from top to bottom. Reading `attempt` is reading the order.

     7  line            fair, prioritised, bounded in time          `Dispatcher.admit`
     8  gate            breaker and cool-down, from the local copy   │ (in the dispatcher,
     9  smoother        optional pace of this pod                    │  for the line and not
    10  global limiter  one question books a send time               │  for a caller)
    11  slot            taken together with the booking             ─┘
    12  call timeout    opens only now
    13  the vendor
    14  retry           outermost, holding nothing, back to 7

On the way out the ending is named once; the slot returns, costs are settled and the breaker is told,
whatever was raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from headworks.caller import staying
from headworks.current import Current, current
from headworks.errors import CallTimeout, DeadlineExceeded, QueueTimeout, VendorFailed
from headworks.limits.breaker import Ending
from headworks.telemetry import Called, Telemetry
from headworks.vendor.dispatcher import Dispatcher
from headworks.vendor.grant import Grant
from headworks.vendor.quota import Cost
from headworks.vendor.retry import Outcome, Retry

A = TypeVar("A")

LATE_AT_MOST = 5
"""Grants that a call may come to too late before it is refused."""

PAUSE = 1.0
"""Seconds that a caller refused for that is asked to wait."""

SLOW = 0.8
"""The part of the call timeout that an answer may take to begin before it counts as slow for the
breaker. A call given less, because its request's deadline was near, is not held against the vendor."""

LONGEST_PAUSE = 300.0
"""Seconds that one answer may pause the fleet for; a vendor that means it says so again."""


class TooLate(Exception):
    """The call was about to be written, but its time has passed: nothing has been sent."""


@dataclass(frozen=True, slots=True)
class Exchange(Generic[A]):
    """How to talk to the vendor once admitted.

    send      makes the call, if it can begin by a time on the loop's clock, else raises `TooLate`; its
              answer may still hold a body to be read
    judge     names what an answer, or what was raised instead, means
    discard   closes an answer that a retry replaces
    """

    send: Callable[[float], Awaitable[A]]
    judge: Callable[[A | Exception], Outcome]
    discard: Callable[[A], None]


class Attempt:
    """A granted call under way; ends once, and reports itself."""

    def __init__(self, pipeline: Pipeline, grant: Grant, model: str) -> None:
        self._pipeline, self._grant, self._model = pipeline, grant, model
        self._over = False
        self._answered_at: float | None = None
        self._noted: tuple[Ending, Mapping[str, int], float] = (Ending.OK, {}, 0.0)

    def answered(self) -> None:
        """The answer has begun: what follows is as long as it is, not slow."""
        self._answered_at = asyncio.get_running_loop().time()

    def note(self, ending: Ending, *, used: Mapping[str, int], cool_down: float) -> None:
        """What the caller says of the call, for when it ends."""
        self._noted = (ending, used, cool_down)

    def end(
        self,
        ending: Ending,
        *,
        status: int = 0,
        used: Mapping[str, int] | None = None,
        cool_down: float = 0.0,
    ) -> None:
        """Name the ending. Only the first call counts."""
        if self._over:
            return
        self._over = True
        noted, noted_used, noted_pause = self._noted
        ending, used = ending if noted is Ending.OK else noted, {**noted_used, **(used or {})}
        now = asyncio.get_running_loop().time()
        seconds, begun = now - self._grant.at, (self._answered_at or now) - self._grant.at
        slow = ending is Ending.OK and begun > SLOW * self._pipeline.call_timeout
        pause = max(noted_pause, cool_down)
        pause = min(pause, LONGEST_PAUSE) if pause > 0 else 0.0
        self._grant.finish(ending, used=used, slow=slow, cool_down=pause)
        units = used.get("tokens", 0)
        self._pipeline.telemetry.emit(
            Called(self._pipeline.vendor, self._model, ending.value, seconds, status, units)
        )


@dataclass(frozen=True, slots=True)
class Sent(Generic[A]):
    """What one attempt came to; without an answer, its outcome holds a refusal."""

    outcome: Outcome
    attempt: Attempt
    answer: A | None = None

    def standing(self) -> tuple[A, Attempt]:
        """The answer, or the refusal raised, when it is not tried again."""
        if self.answer is not None:
            return self.answer, self.attempt
        assert self.outcome.refusal is not None
        raise self.outcome.refusal


class Pipeline:
    """The stages of one vendor, in their order."""

    def __init__(
        self,
        vendor: str,
        *,
        lanes: Mapping[str, Dispatcher],
        retry: Retry,
        call_timeout: float,
        telemetry: Telemetry,
    ) -> None:
        self.vendor, self.call_timeout, self.telemetry = vendor, call_timeout, telemetry
        self._lanes, self._retry = lanes, retry

    async def call(self, model: str, cost: Cost, exchange: Exchange[A]) -> tuple[A, Attempt]:
        """Admit and make the call, again if that is safe and there is budget and time.

        Returns the vendor's answer, even a failing one when it may not be tried again, and the
        attempt, which the caller ends when the answer's body is over. Raises `Refused`; `CallerLeft`
        as soon as whoever asked has left, wherever the call stands.
        """
        async with staying(current().caller):
            return await self._call(model, cost, exchange)

    async def _call(self, model: str, cost: Cost, exchange: Exchange[A]) -> tuple[A, Attempt]:
        loop = asyncio.get_running_loop()
        delay, number = 0.0, 1
        self._retry.active += 1
        try:
            while True:
                sent = await self._attempt(model, cost, exchange)
                left = current().deadline - loop.time()
                pause = self._retry.delay(number, delay, sent.outcome, left)
                if pause is None:
                    return sent.standing()
                if sent.answer is not None:
                    exchange.discard(sent.answer)
                self._retry.retrying += number == 1
                delay, number = pause, number + 1
                await asyncio.sleep(pause)  # holding nothing but a place in the retry budget
        finally:
            self._retry.active -= 1
            self._retry.retrying -= number > 1

    async def _attempt(self, model: str, cost: Cost, exchange: Exchange[A]) -> Sent[A]:
        """One call to the vendor, or none: a grant that came to nothing in time is replaced."""
        who = current()
        for _ in range(LATE_AT_MOST):
            grant = await self._admit(model, cost, who)  # 7 to 11
            try:
                return await self._send(grant, model, exchange, who)
            except TooLate:
                grant.give_back()
        raise self._too_slow()

    async def _send(self, grant: Grant, model: str, exchange: Exchange[A], who: Current) -> Sent[A]:
        attempt = Attempt(self, grant, model)
        bound = min(self.call_timeout, who.deadline - grant.at)
        try:
            async with asyncio.timeout(bound) as timer:  # 12
                answer = await exchange.send(grant.until)  # 13
            attempt.answered()
            outcome = exchange.judge(answer)
        except TooLate:
            raise
        except TimeoutError as error:
            if not timer.expired():
                return Sent(self._failed(attempt, exchange, error), attempt)
            late = self._late(bound)
            attempt.end(late.ending)
            return Sent(late, attempt)
        except Exception as error:
            return Sent(self._failed(attempt, exchange, error), attempt)
        except BaseException:
            attempt.end(Ending.IGNORED)
            raise
        if outcome.ending is not Ending.OK:
            cool_down = outcome.retry_after or 0.0 if outcome.ending is Ending.OVERLOADED else 0.0
            attempt.end(outcome.ending, status=outcome.status, used=outcome.used, cool_down=cool_down)
        return Sent(outcome, attempt, answer)

    def _failed(self, attempt: Attempt, exchange: Exchange[A], error: Exception) -> Outcome:
        """Nothing came back but an exception: an outcome if it is the vendor's, else raise it."""
        outcome = exchange.judge(error)
        attempt.end(outcome.ending, used=outcome.used)
        if outcome.refusal is None:
            raise error
        outcome.refusal.__cause__ = error
        return outcome

    def _late(self, bound: float) -> Outcome:
        """The time for the call, `bound` seconds, was up; was it the vendor's or the request's?"""
        ending = Ending.OVERLOADED if bound > SLOW * self.call_timeout else Ending.IGNORED
        if bound < self.call_timeout:
            return Outcome(ending, DeadlineExceeded())
        return Outcome(ending, CallTimeout(f"vendor '{self.vendor}' did not answer within {bound:g} s"))

    async def _admit(self, model: str, cost: Cost, who: Current) -> Grant:
        """Steps 7 to 11. A grant that this pod woke up to too late goes back, and the line is joined
        again: sent now, it could meet another pod's call at the vendor."""
        lane = self._lanes.get(model) or self._lanes[""]
        for _ in range(LATE_AT_MOST):
            grant = await lane.admit(cost, who)
            if asyncio.get_running_loop().time() <= grant.until:
                return grant
            grant.give_back()
        raise self._too_slow()

    def _too_slow(self) -> QueueTimeout:
        detail = f"this pod is too slow to keep the times of vendor '{self.vendor}'"
        return QueueTimeout(detail, retry_after=PAUSE)

    @asynccontextmanager
    async def hold(self, model: str, cost: Cost, who: Current) -> AsyncIterator[Attempt]:
        """Steps 7 to 12 around a caller's own exchange, made for `who`, for clients that are not ours.

        Not retried: what is inside the block cannot be run again. A timeout, a broken connection or
        any `OSError` counts against the vendor, also in a group of nothing else; another exception or
        a cancellation does not. The block is cancelled when whoever asked has left.
        """
        async with staying(who.caller):
            grant = await self._admit(model, cost, who)
            attempt = Attempt(self, grant, model)
            bound = min(self.call_timeout, who.deadline - grant.at)
            try:
                async with asyncio.timeout(bound) as timer:
                    yield attempt
            except TimeoutError as error:
                late = self._late(bound) if timer.expired() else Outcome(Ending.OVERLOADED)
                attempt.end(late.ending)
                if late.refusal is None:
                    raise
                raise late.refusal from error
            except BaseException as error:
                if not _broken(error):
                    attempt.end(Ending.IGNORED)
                    raise
                attempt.end(Ending.FAILED)
                raise VendorFailed(f"the call to vendor '{self.vendor}' failed: {error}") from error
            else:
                attempt.end(Ending.OK)


def _broken(error: BaseException) -> bool:
    """Whether this is the sound of a broken connection, alone or in a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split((OSError, EOFError))[1] is None
    return isinstance(error, (OSError, EOFError))
