"""A booking, the grant it becomes, and the ledger that settles both with the store.

Everything local returns synchronously; what the store must hear goes through the reaper.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from headworks.cleanup import Reaper
from headworks.limits.breaker import Ending
from headworks.store.protocol import Correction, Gate, Report, Store
from headworks.vendor.gate import GateCache
from headworks.vendor.quota import Cost, Payment, Quota, minus
from headworks.vendor.slots import Slots

LONGER = 1.1
"""What a cool-down is multiplied with at most."""


@dataclass(order=True, slots=True)
class Booking:
    """A send time that the store has given this pod.

    due    on the loop's clock; `number` keeps the order of bookings due together
    cost   what was paid for
    """

    due: float
    number: int
    cost: dict[str, int] = field(compare=False)
    paid: Payment = field(compare=False)
    epoch: int = field(compare=False, default=0)
    probe: int = field(compare=False, default=0)


class Ledger:
    """Settles bookings with the store. `turned` is told when a report brought the gate down."""

    def __init__(
        self,
        vendor: str,
        *,
        quota: Quota,
        shared_gate: Gate,
        gate: GateCache,
        slots: Slots,
        store: Store,
        reaper: Reaper,
        turned: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._vendor, self._quota, self._shared_gate, self._gate = vendor, quota, shared_gate, gate
        self.slots, self._store, self._reaper, self._turned = slots, store, reaper, turned
        self._rng = rng

    def give_back(self, booking: Booking) -> None:
        """The booking's call was not sent: everything paid returns to where it came from."""
        corrections = self._quota.corrections(minus({}, booking.cost), booking.paid)
        self._tell(booking, corrections, Ending.IGNORED)

    def settle(
        self, booking: Booking, used: Cost, ending: Ending, *, slow: bool, cool_down: float
    ) -> None:
        """The call was sent and cost `used`: the difference to what was booked is settled.

        `cool_down` seconds are lengthened by chance, so that fleets on one account do not come back in
        step.
        """
        corrections = self._quota.corrections(minus(used, booking.cost), booking.paid)
        self._tell(
            booking, corrections, ending, slow=slow, cool_down=cool_down * self._rng.uniform(1.0, LONGER)
        )

    def _tell(
        self,
        booking: Booking,
        corrections: tuple[Correction, ...],
        ending: Ending,
        *,
        slow: bool = False,
        cool_down: float = 0.0,
    ) -> None:
        nothing = not corrections and ending is Ending.IGNORED and not booking.probe
        if nothing and asyncio.get_running_loop().time() > self._gate.wary_until:
            return
        report = Report(
            corrections=corrections,
            gate=self._shared_gate,
            ending=ending,
            slow=slow,
            epoch=booking.epoch,
            probe=booking.probe,
            cool_down=cool_down,
        )

        async def tell() -> None:
            known = self._gate.epoch
            standing = await self._store.report(report)
            now = asyncio.get_running_loop().time()
            self._gate.hear(standing, now, known, cool_down)
            if standing.shut_for > 0:
                self._turned()

        self._reaper.hand_over(f"report to vendor '{self._vendor}'", tell)


class Grant:
    """A booking and a slot, held by one call. Ends exactly once: `finish` or `give_back`.

    at     when it was granted, on the loop's clock
    until  when it must have been sent: later it could meet another call at the vendor
    """

    def __init__(self, ledger: Ledger, booking: Booking, cost: Cost, *, at: float, until: float) -> None:
        self._ledger, self._booking, self._cost = ledger, booking, cost
        self._over = False
        self.at, self.until = at, until

    def finish(
        self,
        ending: Ending,
        *,
        used: Cost | None = None,
        slow: bool = False,
        cool_down: float = 0.0,
    ) -> None:
        """The call was sent and is over. `used` overrides the estimated cost, where it is known."""
        if self._end():
            cost = {**self._cost, **(used or {})}
            self._ledger.settle(self._booking, cost, ending, slow=slow, cool_down=cool_down)

    def give_back(self) -> None:
        """The call was never sent: all of it returns."""
        if self._end():
            self._ledger.give_back(self._booking)

    def _end(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._ledger.slots.release()
        return True
