"""What limits that follow latency do to a healthy service whose latency is the length of its answers.

    python -m bench.adaptive [--seed N]

Calls take 15 s on average (log-normal, coefficient of variation 1) because answers are long, whatever
the load; 80 of them are offered at once on average, and nothing queues anywhere. A right limit refuses
nobody. Three limits L, at most L calls at once, are moved by each call that ends, and only while at
least half of L is in use:

    vegas      L. S. Brakmo, L. L. Peterson, TCP Vegas, IEEE JSAC 1995, as limiters use it: with the
               shortest latency known, queue = L · (1 − shortest / latency); L grows while queue is below
               α = 3 log₁₀ L, shrinks while it is above β = 6 log₁₀ L, by log₁₀ L each; the shortest
               is forgotten every 30 L calls
    gradient   L ← 0.8 L + 0.2 (L · g + 4), g = 1.5 · mean latency / latency, held between 0.5 and 1;
               the mean is exponential, over 600 calls, and shrinks by 5 % when it is more than twice
               a latency; L is at least 20 (the rules of Netflix' Gradient2 with its constants)
    fixed      L = 100

The result is the part of the calls that was refused after the first 10 minutes.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

MEAN, OFFERED, WARM = 15.0, 80.0, 600.0


@dataclass(slots=True)
class Fixed:
    """The same limit always."""

    limit: float = 100.0

    def ended(self, latency: float) -> None:
        """A call has taken so long."""


@dataclass(slots=True)
class Vegas:
    """By how much latency exceeds the shortest."""

    limit: float = 20.0
    shortest: float = math.inf
    calls: int = 0

    def ended(self, latency: float) -> None:
        """A call has taken so long."""
        self.calls += 1
        if self.calls >= 30 * self.limit:
            self.calls, self.shortest = 0, math.inf
        if latency < self.shortest:
            self.shortest = latency
            return
        queue = math.ceil(self.limit * (1.0 - self.shortest / latency))
        step = max(1.0, math.log10(self.limit))
        if queue <= step:
            self.limit += 6.0 * step
        elif queue < 3.0 * step:
            self.limit += step
        elif queue > 6.0 * step:
            self.limit = max(1.0, self.limit - step)


@dataclass(slots=True)
class Gradient:
    """By how much latency exceeds its own long mean."""

    limit: float = 20.0
    mean: float = 0.0
    calls: int = 0

    def ended(self, latency: float) -> None:
        """A call has taken so long."""
        self.calls += 1
        self.mean += (latency - self.mean) / min(self.calls, 300)
        if self.mean > 2.0 * latency:
            self.mean *= 0.95
        gradient = max(0.5, min(1.0, 1.5 * self.mean / latency))
        self.limit = max(20.0, 0.8 * self.limit + 0.2 * (self.limit * gradient + 4.0))


LIMITS: dict[str, Callable[[], Fixed | Vegas | Gradient]] = {
    "vegas": Vegas,
    "gradient": Gradient,
    "fixed": Fixed,
}


def refused(name: str, *, seconds: float = 7200.0, seed: int = 1) -> float:
    """The part of healthy calls that a limit refuses."""
    rng, limit = random.Random(seed), LIMITS[name]()
    sigma = math.sqrt(math.log(2.0))
    running: list[tuple[float, float]] = []
    now, asked, no = 0.0, 0, 0
    while now < WARM + seconds:
        now += rng.expovariate(OFFERED / MEAN)
        latency = rng.lognormvariate(math.log(MEAN) - sigma**2 / 2, sigma)
        while running and running[0][0] <= now:
            busy = 2 * len(running) >= limit.limit
            _, took = heapq.heappop(running)
            if busy:
                limit.ended(took)
        asked += now >= WARM
        if len(running) >= int(limit.limit):
            no += now >= WARM
        else:
            heapq.heappush(running, (now + latency, latency))
    return no / asked


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adaptive")
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    for name in LIMITS:
        sys.stdout.write(f"{name:10} {refused(name, seed=seed):6.1%} of healthy calls refused\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
