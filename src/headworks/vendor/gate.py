"""What this pod last heard of the fleet's breaker and cool-down: step 8, without a trip."""

from __future__ import annotations

from headworks.errors import VendorOpen
from headworks.store.protocol import Standing
from headworks.telemetry import Changed, Telemetry
from headworks.verdict import Blocked, Verdict


class GateCache:
    """Local copy of the shared gate, renewed by every reply of the store.

    epoch  rises whenever the breaker opens or closes or a cool-down starts; a booking made under an
           older one is void
    """

    def __init__(self, vendor: str, telemetry: Telemetry) -> None:
        self.epoch = 0
        self.shut_until = 0.0
        self._vendor, self._telemetry = vendor, telemetry
        self._why = Blocked.OPEN
        self._known = "closed"

    def hear(self, answer: Verdict | Standing, now: float) -> None:
        """Learn from a reply of the store, received at `now` on the loop's clock."""
        self.epoch = max(self.epoch, answer.epoch)
        if isinstance(answer, Standing):
            self._shut(now, answer.shut_for, self._why if answer.shut_for else None)
        elif answer.blocked is not None:
            self._shut(now, answer.retry_after, answer.blocked)
        elif answer.allowed:
            self._shut(now, 0.0, None)

    def _shut(self, now: float, seconds: float, why: Blocked | None) -> None:
        self.shut_until = now + seconds if seconds > 0 else 0.0
        self._why = why or Blocked.OPEN
        state = "closed" if why is None else why.value
        if state != self._known:
            self._known = state
            self._telemetry.emit(Changed(f"vendor:{self._vendor}", state, f"epoch {self.epoch}"))

    def wait(self, now: float) -> float:
        """Seconds until the vendor may be called again, as far as this pod knows."""
        return max(0.0, self.shut_until - now)

    def refusal(self, now: float) -> VendorOpen:
        """The refusal of a call that cannot wait until then."""
        why = "its breaker is open" if self._why is Blocked.OPEN else "it asked for a pause"
        return VendorOpen(
            f"vendor '{self._vendor}' is not called for now: {why}", retry_after=self.wait(now)
        )
