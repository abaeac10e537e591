"""The store behind a hard deadline: when it is slow or gone, decisions are made without it.

    up    every question goes to the shared store and has `decision_timeout` seconds. One that fails
          is decided by this process alone; after three failures in a row the store counts as down.
          In a row means one after the other: what was under way already when a failure was noticed
          tells nothing new, so a hiccup counts once however many questions it met.
    down  every question is decided by this process at once. One task at a time looks, with growing
          pauses, whether the store decides again: whether it writes, and not only answers.

A deadline that comes due after the event loop was held up looks for longer, and if there is no answer
even then, that says nothing about the store (`deadline.py`).

Deciding alone means, for each limit, by `when_down`: "share", this process's part of it (`LocalShare`,
whose number of processes is that of the last `Heartbeat`); "open", no limit, only what the local breaker
lets through; "closed", no. Nothing but cancellation ever leaves `ask`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Literal

from headworks.clock import loop_clock
from headworks.limits.shapes import Window
from headworks.store.deadline import Deadlines, LoopLag
from headworks.store.heartbeat import Heartbeat
from headworks.store.protocol import (
    Ask,
    Gate,
    Hears,
    Learns,
    Question,
    Report,
    Shared,
    Standing,
    StoreDown,
    StoreStatistics,
)
from headworks.store.putting import Put
from headworks.store.recall import HAND_OVER, Recall
from headworks.store.share import LocalShare
from headworks.verdict import Verdict

log = logging.getLogger("headworks")

WhenDown = Literal["share", "open", "closed"]
OnChange = Callable[[str, str], None]

FAILURES = 3
"""Failures in a row after which the store counts as down."""
PAUSES = (0.1, 0.8)
"""First and longest pause between looks at a store that is down, seconds; doubled in between."""
TRIAL = Window.of(1, 1.0)
"""What a look takes one of. A server that is read-only, or full, answers questions about nothing; it can
only let this pass by writing, or refuse it because it has written for another process just now."""
TRIAL_TIMEOUT = 1.0
"""Seconds for a look: connecting takes longer than deciding."""
REPORT_TIMEOUT = 1.0
"""Seconds for a report, which nobody waits for."""
ASK_AGAIN = 0.05
"""Seconds after which a booking that the store has not answered is worth another question."""

CLOSED_RETRY = 1.0
"""`retry_after` of a refusal by "closed", and"""
CLOSED_ASK_AGAIN = 0.1
"""of one who can wait."""


class LadderStore:
    """A store that always answers, in time.

    decision_timeout  seconds for one decision, default 0.05
    when_down         how to decide without the store, default "share"
    when_down_for     the same for single limits, by the names that verdicts call them; looked up
                      when it is needed, so it may change meanwhile
    group             whose processes share the limits: they are counted together, from the first
                      question on
    gates             keys of gates that more than the group may share: for what stands behind one, all
                      processes that name it are counted
    replicas          how many there are as long as nothing was counted, ≥ 1
    rng               spreads the looks and beats of many processes over time
    on_change         told ("up" | "down", why) when the store goes or comes back
    """

    def __init__(
        self,
        inner: Shared,
        *,
        decision_timeout: float = 0.05,
        when_down: WhenDown = "share",
        when_down_for: Mapping[str, WhenDown] | None = None,
        group: str = "all",
        gates: Iterable[str] = (),
        replicas: int = 1,
        rng: random.Random,
        on_change: OnChange | None = None,
    ) -> None:
        self._inner = inner
        self._deciding = Deadlines(decision_timeout, moved=self._begin)
        self._telling = Deadlines(REPORT_TIMEOUT)
        self._when_down, self._when_down_for = when_down, when_down_for or {}
        beat = partial(Heartbeat, inner, processes=replicas, rng=rng, then=self._tell_untold)
        self._heartbeat = beat(group)
        self._heartbeats = {key: beat(key) for key in gates}
        self._share, self._recall = LocalShare(self._processes), Recall()
        self._trial_question = Question((Ask("trial", f"{{trial:{group}}}", TRIAL, 1),))
        self._rng, self._on_change, self._now = rng, on_change, loop_clock()
        self._in_a_row = self.round = 0
        self._trial: asyncio.Task[None] | None = None
        self._asking = self._closed = False
        self._questions = self._reports = self._failures = self._degraded = 0

    @property
    def up(self) -> bool:
        """Whether questions are put to the shared store."""
        return self._trial is None

    async def ask(self, question: Question) -> Verdict:
        self._questions += 1
        if self._asking or self._begins():
            gate = question.gate
            rests = 0.0 if gate is None else self._recall.rests(gate, self._now())
            if rests > 0 and "closed" in self._ways(question):
                self._degraded += 1
                return Verdict(False, rests, degraded=True)
            round_ = self.round
            try:
                with self._deciding.one():
                    verdict = await self._inner.ask(question)
            except Exception as error:
                self._failed("decision", error, round_)
            else:
                self._in_a_row = 0
                self._share.heard(question, verdict)
                if question.horizon <= 0:
                    return verdict
                anew = gate is not None and self._recall.born_anew(gate, verdict.epoch, self._now())
                if anew and "closed" in self._ways(question):
                    self._degraded += 1
                    return Verdict(False, HAND_OVER, epoch=verdict.epoch, degraded=True)
                if verdict.allowed:
                    self._recall.granted(question, verdict, self._now())
                return verdict
        self._degraded += 1
        if self._trial is None and question.horizon > 0:
            # Whoever can wait asks again: what was not answered may have been granted, and deciding
            # alone on top of it would let too much through each time the store hesitates.
            return Verdict(False, ASK_AGAIN, degraded=True)
        return self._alone(question)

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """As of `Store`; while the store is down, whoever asks decides alone, as a task."""
        _, horizon, gate, _, demand = question
        if not self._asking or horizon > 0 or gate is not None or demand > 0:
            return False
        put = Put(self, self._deciding, question, to, first)
        call = put.call = self._inner.begin(question, put)
        if call is None:
            return False
        self._questions += 1
        self._deciding.begin(put)
        return True

    def heard(self, question: Question, verdict: Verdict) -> None:
        """The store has answered one that was put."""
        self._in_a_row = 0
        self._share.heard(question, verdict)

    def without(self, question: Question, error: BaseException, round_: int) -> Verdict:
        """The verdict on one that was put, where the store has not answered."""
        self._failed("decision", error, round_)
        self._degraded += 1
        return self._alone(question)

    def _begins(self) -> bool:
        """With the first question begins the heartbeat: nothing runs for a store that nobody asks."""
        if self._trial is None and not self._closed:
            self._begin()
            self._asking = True
        return self._asking

    def _begin(self) -> None:
        """Be counted, in the running loop; not any more once closed."""
        if not self._closed:
            for heartbeat in (self._heartbeat, *self._heartbeats.values()):
                heartbeat.begin()

    def _processes(self, gate: Gate | None) -> int:
        """How many share what stands behind this gate, or without one what the group shares."""
        return self._heartbeats.get(gate.key if gate else "", self._heartbeat).processes

    def _ways(self, question: Question) -> list[WhenDown]:
        """What each limit of a question does without the store; the general way where there is none."""
        ways = [self._when_down_for.get(ask.name, self._when_down) for ask in question.asks]
        return ways or [self._when_down]

    def _alone(self, question: Question) -> Verdict:
        ways = self._ways(question)
        if "closed" in ways:
            # Whoever stands in line asks again soon: it costs nobody anything until the store is back.
            again = CLOSED_ASK_AGAIN if question.horizon > 0 else CLOSED_RETRY
            return Verdict(False, again, degraded=True)
        shared = tuple(ask for ask, way in zip(question.asks, ways, strict=False) if way == "share")
        return self._share.decide(question._replace(asks=shared))

    async def report(self, report: Report) -> Standing:
        """Tell the store, or the local breaker when it is down. What a report that fails gives back is
        lost: it may have been heard, and giving back twice would let too much through. What it charges
        a vendor's quota is charged again."""
        self._reports += 1
        if self._trial is None:
            round_ = self.round
            try:
                with self._telling.one():
                    standing = await self._inner.report(report)
            except Exception as error:
                self._failed("report", error, round_)
            except asyncio.CancelledError:
                self._recall.corrected(report.corrections, heard=False)
                raise
            else:
                self._in_a_row = 0
                self._recall.corrected(report.corrections, heard=True)
                return standing
        self._degraded += 1
        self._recall.corrected(report.corrections, heard=False)
        return self._share.report(report)

    async def _tell_untold(self, known: bool) -> None:
        """After a beat: tell the store what it has not heard of; all of it, if it did not know this
        process any more and has forgotten what was told."""
        if self._trial is not None:
            return
        for gate in self._recall.gates():
            if not known:
                standing = await self.report(Report(gate=gate))
                self._recall.born_anew(gate, standing.epoch, self._now())
            if owed := self._recall.untold(gate, self._now()):
                await self.report(Report(owed))

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        """0 also when the store is down: without it nobody knows who holds what."""
        if self._trial is None:
            round_ = self.round
            try:
                with self._deciding.one():
                    return await self._inner.lease(key, holder=holder, limit=limit, ttl=ttl)
            except Exception as error:
                self._failed("lease", error, round_)
        return 0

    async def release(self, key: str, *, holder: str) -> None:
        """A lease that cannot be returned ends by itself."""
        if self._trial is None:
            round_ = self.round
            try:
                with self._telling.one():
                    await self._inner.release(key, holder=holder)
            except Exception as error:
                self._failed("release", error, round_)

    async def forget(self, keys: Sequence[str]) -> None:
        """Forget here and in the store. Raises `StoreDown` when the store cannot be told."""
        self._share.forget(keys)
        try:
            with self._telling.one():
                await self._inner.forget(keys)
        except TimeoutError as error:
            raise StoreDown(f"no answer within {REPORT_TIMEOUT:g} s") from error

    async def aclose(self) -> None:
        self._closed = True
        try:
            if self._trial is not None:
                self._trial.cancel()
                await asyncio.wait((self._trial,))
            for heartbeat in (self._heartbeat, *self._heartbeats.values()):
                await heartbeat.end()
        finally:
            await self._inner.aclose()

    def statistics(self) -> StoreStatistics:
        inner = self._inner.statistics()
        return StoreStatistics(
            inner.kind,
            questions=self._questions,
            reports=self._reports,
            trips=inner.trips,
            failures=self._failures,
            degraded=self._degraded,
            up=self.up,
            processes=self._heartbeat.processes,
        )

    def _failed(self, what: str, error: BaseException, round_: int) -> None:
        """Count what failed, unless it was under way already when the last failure was noticed."""
        if isinstance(error, LoopLag):
            return
        self._failures += 1
        if round_ == self.round:
            self._in_a_row += 1
            self.round += 1
        why = str(error) or f"no answer in time ({type(error).__name__})"
        if not isinstance(error, (StoreDown, TimeoutError)):
            log.error("the store's %s failed in an unforeseen way", what, exc_info=error)
        if self._in_a_row >= FAILURES and self._trial is None and not self._closed:
            loop, look = asyncio.get_running_loop(), self._look()  # no part of whose request failed
            self._trial = loop.create_task(look, name="store-trial", context=Context())
            self._trial.add_done_callback(self._looked)
            self._asking = False
            self._tell("down", why)

    async def _look(self) -> None:
        """Look for the store until it decides: in time, and with what it decided written down."""
        pause, longest = PAUSES
        while True:
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)
            try:
                async with asyncio.timeout(TRIAL_TIMEOUT):
                    await self._inner.ask(Question(()))
                with self._deciding.one():  # connected, it must also be quick enough
                    await self._inner.ask(self._trial_question)
                break
            except (StoreDown, TimeoutError):
                continue
            except Exception:
                log.exception("looking for the store failed in an unforeseen way")
        self._looked()
        self._share.end()
        self._tell("up", "the store decides again")

    def _looked(self, look: object = None) -> None:
        """Nobody looks any more: it was found, or the event loop has ended with all its tasks."""
        if look in (None, self._trial):
            self._in_a_row, self._trial = 0, None

    def _tell(self, state: str, detail: str) -> None:
        log.warning("store %s: %s", state, detail)
        if self._on_change is not None:
            self._on_change(state, detail)
