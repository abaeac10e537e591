"""What this pod last heard of the fleet's breaker and cool-down: step 8, without a trip."""

from __future__ import annotations

from headworks.errors import VendorOpen
from headworks.store.protocol import Standing
from headworks.telemetry import Changed, Telemetry
from headworks.verdict import Blocked, Verdict

LOOK_AGAIN = 2.0
"""Seconds for which word of an open breaker is taken on trust. A half-open one that has lent out its
probes names the end of their lease, but closes as soon as they are back, and tells only who asks."""

WARY = 60.0
"""Seconds after word of a cool-down for which even calls that came to nothing are told: the slow start
waits for each of them."""

SOONEST = 0.01
"""Seconds at least before a gate that was found shut is asked about again."""


class GateCache:
    """Local copy of the shared gate, renewed by every reply of the store.

    epoch  rises whenever the breaker opens or closes or a cool-down starts; a booking made under an
           older one is void
    wary_until  a slow start may be under way until then
    look_at  when it is worth asking about a shut gate again, at the latest when it should open
    """

    def __init__(self, vendor: str, telemetry: Telemetry) -> None:
        self.epoch = 0
        self.shut_until = self.look_at = self.wary_until = 0.0
        self._vendor, self._telemetry = vendor, telemetry
        self._why = Blocked.OPEN
        self._known = "closed"

    def hear(self, answer: Verdict | Standing, now: float, known: int, cool_down: float = 0.0) -> None:
        """Learn from a reply of the store, received at `now` on the loop's clock.

        A standing does not say why the gate is shut: if it is for no longer than the `cool_down` we had
        just asked for, that is why; else it is as it was, or the breaker has opened.

        `known` is the epoch we knew when we asked. A reply older than that shows that the store itself
        has gone back (a failover loses its last writes) and we go with it: by an epoch that nobody
        remembers every new booking would be void. One older only than what came since is no news.
        """
        if known <= answer.epoch < self.epoch:
            return
        self.epoch = answer.epoch
        if isinstance(answer, Standing):
            asked_for = 0.0 < answer.shut_for <= cool_down
            why = Blocked.COOL_DOWN if asked_for else self._why
            self._shut(now, answer.shut_for, why if answer.shut_for > 0 else None)
        elif answer.blocked is not None:
            self._shut(now, answer.retry_after, answer.blocked)
        elif answer.allowed:
            self._shut(now, 0.0, None)

    def _shut(self, now: float, seconds: float, why: Blocked | None) -> None:
        if why is not None:
            seconds = max(seconds, SOONEST)
        self.shut_until = self.look_at = now + seconds if seconds > 0 else 0.0
        if why is Blocked.COOL_DOWN:
            self.wary_until = now + seconds + WARY
        if why is Blocked.OPEN:
            self.look_at = min(self.shut_until, now + LOOK_AGAIN)
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
