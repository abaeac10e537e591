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
from typing import Any

from headworks.cleanup import Reaper
from headworks.current import Criticality, Current
from headworks.errors import DeadlineExceeded, QueueTimeout, Refused, VendorQuota
from headworks.limits.breaker import BreakerRules
from headworks.limits.line import Line, Waiter
from headworks.store.protocol import Gate, Question, Store
from headworks.telemetry import Decided, Telemetry, Waited
from headworks.vendor.alarm import Alarm
from headworks.vendor.gate import GateCache
from headworks.vendor.grant import Booking, Grant, Ledger
from headworks.vendor.outlook import ROOM, Full, Outlook, Place
from headworks.vendor.pace import Demand, Pace
from headworks.vendor.quota import Cost, Payment, Quota, minus, missing
from headworks.vendor.slots import Slots
from headworks.vendor.smoother import Smoother
from headworks.verdict import NEVER, Verdict

LEAD = 2.0
"""Seconds of this pod's share of the quota that are booked ahead: enough that a pod with a twentieth
of the demand still holds one booking at ten calls a second."""

TRIM = 1.25
"""By how much the line may be longer than can be served in time before it is cut."""

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
        self._pod, self._replicas, self._queue_timeout = pod, replicas, queue_timeout
        self._ledger = Ledger(
            vendor,
            quota=quota,
            shared_gate=self._shared_gate,
            gate=gate,
            slots=slots,
            store=store,
            reaper=reaper,
            turned=self._turn_away,
        )
        self._line: Line[Place] = Line()
        self._bookings: list[Booking] = []
        self._number = 0
        self._asking: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._serve)
        self._tolerance = max(jitter * LOCAL, TOLERANCE)
        self.late = 0
        self._rounding, self._closed = 1.0, False
        self._pace = Pace(expected_latency / slots.total)
        self._outlook = Outlook(quota, gate, self._pace, queue_timeout, rng)
        self._demand = Demand()
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
        waiter = self._enter(counted, who)
        self._kick()
        try:
            return await waiter.payload.woken
        except asyncio.CancelledError:
            self._left(waiter)
            raise

    def _enter(self, cost: dict[str, int], who: Current) -> Waiter[Place]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._demand.arrived(now)
        until = min(now + self._queue_timeout, who.deadline)
        ahead = self._line.ahead(who.tenant, who.criticality)
        wait = self._outlook.wait(ahead, cost, who.criticality, self._bookings, now)
        refusal = self._outlook.hopeless(cost, until, now)
        if self._closed:
            refusal = QueueTimeout("the service is shutting down", retry_after=1.0)
        elif now >= who.deadline:
            refusal = DeadlineExceeded()
        elif refusal is None and now + wait > until:
            refusal = self._outlook.too_long(wait, cost)
        if refusal is not None:
            self._decided(who.criticality, refusal)
            raise refusal
        place = Place(cost, loop.create_future(), now, until, who.deadline)
        units = max(cost.get("tokens", 0), cost.get("input_tokens", 0) + cost.get("output_tokens", 0))
        waiter = Waiter(place, who.tenant, who.criticality, max(units, 1), who.weight)
        self._line.join(waiter)
        self._pace.joined(waiter.criticality, now)
        place.timer = loop.call_at(until, self._give_up, waiter)
        return waiter

    def _left(self, waiter: Waiter[Place]) -> None:
        """A caller was cancelled: out of the line, and back with what it had just been handed."""
        woken = waiter.payload.woken
        if woken.done() and not woken.cancelled() and woken.exception() is None:
            woken.result().give_back()
        self._out(waiter)
        self._kick()  # the next in line may cost less

    def _give_up(self, waiter: Waiter[Place]) -> None:
        """The time in line is over."""
        now = asyncio.get_running_loop().time()
        if now >= waiter.payload.deadline:
            self._refuse(waiter, DeadlineExceeded())
        elif self._gate.wait(now) > 0:
            self._refuse(waiter, self._gate.refusal(now))
        else:
            self._pace.in_vain(waiter.criticality, waiter.payload.joined_at, now)
            wait = self._tail(waiter.criticality, now)
            self._refuse(waiter, self._outlook.too_long(wait, waiter.payload.cost))
        self._kick()

    def _refuse(self, waiter: Waiter[Place], refusal: Refused) -> None:
        self._out(waiter)
        if not waiter.payload.woken.done():
            self._decided(waiter.criticality, refusal)
            waiter.payload.woken.set_exception(refusal)

    def _decided(self, criticality: Criticality, refusal: Refused | None = None) -> None:
        reason = refusal.reason if refusal else ""
        name = criticality.name.lower()
        self._telemetry.emit(Decided("vendor", refusal is None, reason, self.vendor, name))

    def _out(self, waiter: Waiter[Place]) -> None:
        self._line.leave(waiter)
        if waiter.payload.timer is not None:
            waiter.payload.timer.cancel()

    def _turn_away(self) -> None:
        """Refuse at once who cannot be served in time, but not those for whom bookings are held."""
        now = asyncio.get_running_loop().time()
        latest = max(now + self._gate.wait(now), self._outlook.full.room_at)
        booked = 0 if self._gate.wait(now) > 0 else len(self._bookings)
        served = {id(self._line.nth(n)) for n in range(booked)}
        for waiter in self._line.waiters():
            if waiter.payload.until >= latest or id(waiter) in served:
                continue
            refusal = self._outlook.hopeless(waiter.payload.cost, waiter.payload.until, now)
            if refusal is not None:
                self._refuse(waiter, refusal)

    def _tail(self, criticality: Criticality, now: float) -> float:
        """Seconds until the end of the line is likely to be served."""
        return self._outlook.wait(len(self._line), {}, criticality, self._bookings, now)

    def _trim(self) -> None:
        """More stand in line than the pace now known can serve in time: refuse the last of them now."""
        now = asyncio.get_running_loop().time()
        if self._tail(Criticality.CRITICAL, now) < TRIM * self._queue_timeout:
            return
        for ahead, waiter in enumerate(self._line.in_order()):
            place, top = waiter.payload, Criticality.CRITICAL  # whom nobody overtakes
            wait = self._outlook.wait(ahead, place.cost, top, self._bookings, now)
            if now + wait > place.until + (TRIM - 1.0) * self._queue_timeout / 2:
                self._refuse(waiter, self._outlook.too_long(wait, place.cost))

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
        wait = max(shut, self._smoother.wait(now))
        if self._outlook.full.holds(next_up.payload.cost):
            wait = max(wait, self._outlook.full.ask_at - now)
        if wait > 0:
            self._alarm.set(now + wait)
        elif self._slots.pledge_nowait():
            self._start(self._book(next_up))

    def _ahead(self) -> int:
        """How many bookings may be out: this pod's share of demand, `LEAD` seconds of the quota."""
        if self._quota.interval <= 0:
            return self._slots.total
        return max(1, math.floor(self._demand.share * LEAD / self._quota.interval + self._rounding))

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
            self._trim()
            if verdict.allowed:
                self._smoother.pass_one(asyncio.get_running_loop().time())
                self._number += 1
                self._rounding = self._rng.random()  # a fraction of a booking is one now and then
                booking = Booking(due, self._number, cost, [payment], verdict.epoch, verdict.probe)
                heapq.heappush(self._bookings, booking)
        finally:
            if booking is None:
                self._slots.unpledge()

    async def _top_up(self, booking: Booking, waiter: Waiter[Place], lack: dict[str, int]) -> None:
        """The head costs more than was booked: pay the difference, and move the booking to then."""
        topped_up = False
        try:
            verdict, payment, due = await self._ask(lack, waiter, None)
            if verdict.allowed:
                booking.cost = minus(booking.cost, minus({}, lack))
                booking.paid.append(payment)
                booking.due = max(booking.due, due)
                heapq.heappush(self._bookings, booking)
                topped_up = True
        finally:
            if not topped_up:
                self._return(booking)

    async def _ask(
        self, cost: dict[str, int], waiter: Waiter[Place], gate: Gate | None
    ) -> tuple[Verdict, Payment, float]:
        """One question about this cost, on behalf of the line; learn from whatever it brings.

        Also returns when to send, on our clock. The store decided between question and answer, so in
        the middle of the two as far as we can know; an answer that took long makes a late booking.

        A top-up asks no gate: it has passed it, and another probe would be lent to nobody.
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
        if verdict.allowed:
            self._outlook.full = ROOM
        elif verdict.blocked is not None:
            self._turn_away()
        elif verdict.degraded and not verdict.limits:  # no word of the quota: nobody answered
            self._outlook.full = Full({}, 0.0, now + max(verdict.retry_after, SOONEST))
        elif verdict.retry_after == NEVER:
            detail = f"the call costs more than vendor '{self.vendor}' ever allows at once"
            self._refuse(waiter, VendorQuota(f"{detail}: {cost}", limit=self.vendor))
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
        self._turn_away()

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
            if head is None or void:
                self._return(booking)
            elif lack:
                self._start(self._top_up(booking, head, lack))
            else:
                self._hand_over(booking, head, now)
        if self._bookings:
            self._alarm.set(self._bookings[0].due)
        self._kick()

    def _head(self) -> Waiter[Place] | None:
        """Who is next; a caller that was cancelled but has not yet woken to leave is struck out."""
        while (head := self._line.head()) is not None and head.payload.woken.done():
            self._out(head)
        return head

    def _hand_over(self, booking: Booking, head: Waiter[Place], now: float) -> None:
        """Booking and slot in one step, to the head of the line."""
        self._line.pop()
        self._out(head)
        self._slots.take_pledged()
        self._pace.served(now, busy=len(self._line) > 0)
        self._decided(head.criticality)
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
        self._closed = True
        for waiter in self._line.waiters():
            self._refuse(waiter, QueueTimeout("the service is shutting down", retry_after=1.0))
        asking = self._asking
        if asking is not None:
            _, late = await asyncio.wait((asking,), timeout=1.0)
            if late:
                asking.cancel()
        self._alarm.cancel()
        while self._bookings:
            self._return(heapq.heappop(self._bookings))
