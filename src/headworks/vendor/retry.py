"""Whether and when to try again: only what is safe and transient, within a budget.

Backoff is decorrelated jitter (M. Brooker, "Exponential Backoff And Jitter", 2015):
`delay = min(CAP, uniform(BASE, 3 · previous))`. A vendor's `Retry-After` is never undercut. The
budget lets at most a fifth of the calls under way be retries, sleeping or sent, and always one: retries
must not multiply an overload. Nor is a vendor waited for that asks for more than `LONGEST`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from headworks.errors import Refused
from headworks.limits.breaker import Ending

BASE = 0.5
CAP = 8.0
LONGEST = 60.0
BUDGET_RATIO = 0.2
BUDGET_FLOOR = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt came out.

    refusal      what the caller would be told; None when the vendor answered
    retryable    trying again is safe and may help
    retry_after  seconds the vendor asked us to wait, None if it did not say
    status       of the vendor's answer, 0 without one
    used         what the attempt cost, where that is not what was booked for it
    """

    ending: Ending
    refusal: Refused | None = None
    retryable: bool = False
    retry_after: float | None = None
    status: int = 0
    used: Mapping[str, int] | None = None


class Retry:
    """Attempts and budget of one vendor in this pod. `attempts` counts the first one too.

    active    calls under way; `retrying` of them are past their first attempt, asleep or not
    """

    def __init__(self, attempts: int, rng: random.Random) -> None:
        self._attempts, self._rng = attempts, rng
        self.active = 0
        self.retrying = 0

    def delay(self, attempt: int, previous: float, outcome: Outcome, left: float) -> float | None:
        """Seconds to wait before the next attempt, or None to let the outcome stand.

        attempt   which one just ended, from 1
        previous  the delay before it, 0 for the first
        left      seconds until the request's deadline
        """
        if not outcome.retryable or attempt >= self._attempts:
            return None
        others = self.retrying - (attempt > 1)
        if others >= max(BUDGET_FLOOR, BUDGET_RATIO * self.active):
            return None
        if (outcome.retry_after or 0.0) > LONGEST:
            return None
        delay = min(CAP, self._rng.uniform(BASE, max(BASE, 3 * previous)))
        if outcome.retry_after is not None:
            delay = outcome.retry_after + self._rng.uniform(0.0, BASE)
        return delay if delay < left else None
