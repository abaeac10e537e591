"""Late binding: send times are booked for the line, not for a caller.

The dispatcher books while somebody waits *and* a slot stands free, at most `ahead` bookings at a
time. When a booking falls due, whoever is at the head of the line *then* takes booking and slot in
one step. So a cancelled waiter costs nothing, and fairness and priority decide until the last
moment. It is all callbacks but for the one question in flight, which is a task of ours: no caller's
cancellation can lose what it brings.

    admit → line → (gate, smoother, store: book) → due → head of the line + slot → Grant
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from headworks.cleanup import Reaper
from headworks.current import Current
from headworks.errors import VendorQuota
from headworks.limits.breaker import BreakerRules
from headworks.limits.line import Waiter
from headworks.store.protocol import Gate, Question, Store
from headworks.telemetry import Telemetry, Waited
from headworks.vendor.alarm import Alarm
from headworks.vendor.gate import GateCache
from headworks.vendor.grant import Booking, Grant, Ledger
from headworks.vendor.outlook import ROOM, Full, Outlook, Place
from headworks.vendor.pace import Pace
from headworks.vendor.quota import Cost, Payment, Quota, missing
from headworks.vendor.slots import Slots
from headworks.vendor.smoother import Smoother
from headworks.vendor.waiting import Waiting
from headworks.verdict import NEVER, Verdict

LEAD = 10
"""Calls of the whole quota that are booked ahead, each pod its share of them."""

LEAD_LEAST, LEAD_MOST = 0.2, 2.0
"""Seconds ahead that these may be at least, to hide a trip to the store, and at most."""

PATIENT = 1.2
"""Of the bookings' lead, what a caller may have to wait at least, however overloaded the vendor."""

LOCAL = 0.5
"""The part of the jitter that may be this pod's own lateness; the rest is the network's."""

TOLERANCE = 0.02
"""Seconds that a call may be sent after its booking's time at least, whatever jitter the policy has."""

SOONEST = 0.001
"""Seconds at least before a refused question is asked again."""


class Dispatcher:
    """One lane of a vendor: its line, its bookings, and the question in flight."""

    def __init__(
        self,
        vendor: str,
        *,
        quota: Quota,
        rules: BreakerRules,
        gate: GateCache,
        slots: Slots,
        smoother: Smoother,
        store: Store,
        reaper: Reaper,
        telemetry: Telemetry,
        pod: str,
        replicas: int,
        queue_timeout: float,
        expected_latency: float,
        jitter: float,
        rng: random.Random,
    ) -> None:
        self.vendor, self._quota, self._gate, self._slots = vendor, quota, gate, slots
        self._shared_gate = Gate(quota.gate_key, rules)
        self._store, self._smoother, self._telemetry, self._rng = store, smoother, telemetry, rng
        self._pod, self._replicas = pod, replicas
        self._ledger = Ledger(
            vendor,
            quota=quota,
            shared_gate=self._shared_gate,
            gate=gate,
            slots=slots,
            store=store,
            reaper=reaper,
            turned=lambda: self._waiting.turn_away(),
            rng=rng,
        )
        self._bookings: list[Booking] = []
        self._number = 0
        self._asking: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._serve)
        self._tolerance = max(jitter * LOCAL, TOLERANCE)
        self.late = 0
        self._rounding = 1.0
        self._lead = min(max(LEAD * quota.interval, LEAD_LEAST), LEAD_MOST)
        self._pace = Pace(expected_latency / slots.total)
        self._outlook = Outlook(quota, gate, self._pace, queue_timeout, rng)
        self._waiting = Waiting(
            vendor,
            gate=gate,
            pace=self._pace,
            outlook=self._outlook,
            bookings=self._bookings,
            telemetry=telemetry,
            queue_timeout=queue_timeout,
            least=PATIENT * self._lead,
            gave_up=self._kick,
        )
        self._line, self._demand = self._waiting.line, self._waiting.demand
        slots.when_freed(self._kick)

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return len(self._line)

    @property
    def booked(self) -> int:
        """Bookings that have not fallen due."""
        return len(self._bookings)

    async def admit(self, cost: Cost, who: Current) -> Grant:
        """Steps 7 to 11: stand in line until a booking and a slot are ours.

        Raises at once when the wait would be too long: `QueueTimeout`, `DeadlineExceeded`,
        `VendorOpen`, `VendorQuota`. Cancelling it at any point leaves nothing behind.
        """
        counted = {unit: units for unit, units in cost.items() if unit in self._quota.units}
        waiter = self._waiting.enter(counted, who)
        self._kick()
        try:
            return await waiter.payload.woken
        except asyncio.CancelledError:
            self._left(waiter)
            raise

    def _left(self, waiter: Waiter[Place]) -> None:
        """A caller was cancelled: out of the line, and back with what it had just been handed."""
        woken = waiter.payload.woken
        if woken.done() and not woken.cancelled() and woken.exception() is None:
            woken.result().give_back()
        self._waiting.leave(waiter)
        self._kick()  # the next in line may cost less

    # -- booking: steps 8 to 10 ------------------------------------------------------------------

    def _kick(self) -> None:
        """Book, or set the alarm for when booking makes sense again. Called on every change."""
        if self._asking is not None or len(self._bookings) >= self._ahead() or self._slots.free <= 0:
            return
        next_up = self._line.nth(len(self._bookings))
        if next_up is None:
            return
        now = asyncio.get_running_loop().time()
        shut = min(self._gate.wait(now), self._gate.look_at - now)
        wait = max(shut, self._smoother.wait(now), self._outlook.rests_until - now)
        if self._outlook.full.holds(next_up.payload.cost):
            wait = max(wait, self._outlook.full.ask_at - now)
        if wait > 0:
            self._alarm.set(now + wait)
        elif self._slots.pledge_nowait():
            self._start(self._book(next_up))

    def _ahead(self) -> int:
        """How many bookings may be out: this pod's share of demand, of the quota's next calls."""
        if self._quota.interval <= 0:
            return self._slots.total
        return max(1, math.floor(self._ours() + self._rounding))

    def _ours(self) -> float:
        """This pod's part of the bookings that the whole fleet makes ahead."""
        return self._demand.share * self._lead / self._quota.interval

    def _rest(self, due: float, wait: float) -> None:
        """A pod whose part is less than one booking holds one for that part of the time only."""
        if self._quota.interval > 0 and (ours := self._ours()) < 1.0:
            self._outlook.rests_until = due + min(wait * (1.0 / max(ours, 0.01) - 1.0), LEAD_MOST)

    def _start(self, question: Coroutine[Any, Any, None]) -> None:
        self._asking = asyncio.get_running_loop().create_task(question, name=f"book:{self.vendor}")
        self._asking.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if task.cancelled():
            return
        loop = asyncio.get_running_loop()
        if task.exception() is not None:  # a bug, not a store's outage: say so, and do not spin
            message = f"booking for vendor '{self.vendor}' failed"
            loop.call_exception_handler({"message": message, "exception": task.exception()})
            self._outlook.full = Full({}, 0.0, loop.time() + 1.0)
        self._serve()

    async def _book(self, waiter: Waiter[Place]) -> None:
        """Step 10: one question. The slot pledged for it is kept by the booking, or returned."""
        cost = waiter.payload.cost
        booking: Booking | None = None
        try:
            verdict, payment, due = await self._ask(cost, waiter, self._shared_gate)
            self._waiting.trim()
            if verdict.allowed:
                self._smoother.pass_one(asyncio.get_running_loop().time())
                self._number += 1
                self._rounding = self._rng.random()  # a fraction of a booking is one now and then
                booking = Booking(due, self._number, cost, payment, verdict.epoch, verdict.probe)
                heapq.heappush(self._bookings, booking)
                self._rest(due, verdict.wait)
        finally:
            if booking is None:
                self._slots.unpledge()

    async def _rebook(self, booking: Booking, waiter: Waiter[Place]) -> None:
        """The head costs more than was booked: book anew, all of it for one time, and give the old back.

        To pay the difference alone would not do: it may fall due later, and what was paid for the
        earlier time would be free again before the vendor forgets the call.
        """
        anew: Booking | None = None
        try:
            verdict, payment, due = await self._ask(waiter.payload.cost, waiter, None)
            if verdict.allowed:
                anew = replace(booking, due=due, cost=payment.cost, paid=payment)
                heapq.heappush(self._bookings, anew)
        finally:
            if anew is None:
                self._return(booking)
            else:
                self._ledger.give_back(replace(booking, probe=0))  # the new one has it

    async def _ask(
        self, cost: dict[str, int], waiter: Waiter[Place], gate: Gate | None
    ) -> tuple[Verdict, Payment, float]:
        """One question about this cost, on behalf of the line; learn from whatever it brings.

        Also returns when to send, on our clock. The store decided between question and answer, so in
        the middle of the two as far as we can know; an answer that took long makes a late booking.

        Booking anew asks no gate: it has been passed, and another probe would be lent to nobody.
        """
        loop, known = asyncio.get_running_loop(), self._gate.epoch
        asked = loop.time()
        question = Question(
            asks=self._quota.asks(cost),
            horizon=self._quota.horizon,
            gate=gate,
            pod=self._pod,
            demand=self._demand.to_report(asked) if gate is not None else 0.0,
        )
        verdict = await self._store.ask(question)
        now = loop.time()
        if gate is not None:
            self._gate.hear(verdict, now, known)
        self._demand.heard(verdict.demand)
        self._pace.heard(verdict, self._quota.spacing(cost) / self._demand.share)
        self._outlook.unheard = verdict.degraded and not verdict.limits
        if verdict.allowed:
            self._outlook.full = ROOM
        elif verdict.blocked is not None:
            self._waiting.turn_away()
        elif self._outlook.unheard:  # no word of the quota
            self._outlook.full = Full({}, 0.0, now + max(verdict.retry_after, SOONEST))
        elif verdict.retry_after == NEVER:
            detail = f"the call costs more than vendor '{self.vendor}' ever allows at once"
            self._waiting.refuse(waiter, VendorQuota(f"{detail}: {cost}", limit=self.vendor))
        else:
            self._refused(cost, self._quota.sooner(verdict.retry_after), now)
        return verdict, Payment(cost, verdict.at_us), (asked + now) / 2 + verdict.wait

    def _refused(self, cost: dict[str, int], wait: float, now: float) -> None:
        """No send time within the horizon: who cannot wait that long goes, the others ask again then,
        the send time then being a horizon later. Pods that were refused together ask again spread over
        a pace each, so as not to ask in step."""
        horizon, wait = self._quota.horizon, max(wait, SOONEST)
        spread = self._rng.uniform(0.0, (self._replicas - 1) * min(self._quota.interval, 1.0))
        self._outlook.full = Full(cost, now + wait + horizon, now + wait + min(spread, horizon))
        self._waiting.turn_away()

    # -- sending: step 11 ------------------------------------------------------------------------

    def _serve(self) -> None:
        """Hand every booking that has fallen due to the head of the line; then book on."""
        now = asyncio.get_running_loop().time()
        while self._bookings and self._bookings[0].due <= now:
            head = self._head()
            booking = self._bookings[0]
            lack = missing(head.payload.cost, booking.cost) if head is not None else {}
            late = now > booking.due + self._tolerance
            self.late += late
            void = head is None or late or booking.epoch < self._gate.epoch
            if lack and not void and self._asking is not None:
                return  # one question at a time: its answer brings us back here
            heapq.heappop(self._bookings)
            if head is None or void or (lack and self._covered(head)):
                self._return(booking)
            elif lack:
                self._start(self._rebook(booking, head))
            else:
                self._hand_over(booking, head, now)
        if self._bookings:
            self._alarm.set(self._bookings[0].due)
        self._kick()

    def _covered(self, head: Waiter[Place]) -> bool:
        """Whether a later booking is large enough for who is next."""
        return any(not missing(head.payload.cost, booking.cost) for booking in self._bookings)

    def _head(self) -> Waiter[Place] | None:
        """Who is next; a caller that was cancelled but has not yet woken to leave is struck out."""
        while (head := self._line.head()) is not None and head.payload.woken.done():
            self._waiting.leave(head)
        return head

    def _hand_over(self, booking: Booking, head: Waiter[Place], now: float) -> None:
        """Booking and slot in one step, to the head of the line."""
        self._line.pop()
        self._waiting.leave(head)
        self._slots.take_pledged()
        self._pace.served(now, busy=len(self._line) > 0)
        self._waiting.decided(head.criticality)
        self._telemetry.emit(Waited(self.vendor, now - head.payload.joined_at))
        until = booking.due + self._tolerance
        grant = Grant(self._ledger, booking, head.payload.cost, at=now, until=until)
        head.payload.woken.set_result(grant)

    def _return(self, booking: Booking) -> None:
        """A booking came to nothing: its slot and everything paid go back."""
        self._slots.unpledge()
        self._ledger.give_back(booking)

    # -- the end ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Refuse everyone in line, end the question in flight, give every booking back."""
        self._waiting.close()
        asking = self._asking
        if asking is not None:
            _, late = await asyncio.wait((asking,), timeout=1.0)
            if late:
                asking.cancel()
        self._alarm.cancel()
        while self._bookings:
            self._return(heapq.heappop(self._bookings))
