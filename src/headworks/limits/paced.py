"""From a vendor's quota, and how the vendor enforces it, to what must be enforced here.

A grant is not an arrival: the time between them varies by up to J seconds, the jitter. Calls granted
apart may arrive J closer together, so what is granted must conform with J to spare.

    vendor's bucket, capacity B, rate ρ = L/W    bucket at rate ρ, burst σ = ⌊B − ρJ⌋
                                                 B − ρJ < 1: one at a time, one per 1/ρ + J
    vendor's window W, single units              bucket at L per (W + J), one at a time
    vendor's window W, lumpy costs               window of L over W + J
    utilisation that this allows                 1 against a bucket, W/(W + J) against a window

Units: W and J in float seconds, L, B and σ in units of the quota. Source: arrivals within W of one
another were granted within W + J of one another; in J a bucket refills by ρJ.
"""

from __future__ import annotations

import math

from headworks.limits.shapes import Bucket, Shape, Window

VENDOR_GRAINS = 60
"""Sub-buckets of a window for lumpy costs: each costs 1/60 of the window's time at worst."""


def enforce(
    limit: int,
    period: float,
    *,
    mechanism: str,
    jitter: float,
    lumpy: bool,
    burst: int | None = None,
) -> tuple[Shape, ...]:
    """The shapes under which `limit` units per `period` seconds are never exceeded at the vendor.

    mechanism  how the vendor enforces: "bucket", or a window ("sliding", "fixed", and so on)
    jitter     spread of the delay between grant and arrival, seconds ≥ 0
    lumpy      whether one call costs more than one unit (tokens do, requests do not)
    burst      the capacity of the vendor's bucket, default `limit`
    """
    if mechanism == "bucket":
        capacity = limit if burst is None else burst
        spared = math.floor(capacity - limit / period * jitter)
        if spared >= 1:
            return (Bucket.of(limit, period, burst=spared),)
        return (Bucket.of(limit, period + limit * jitter),)
    if lumpy:
        return (Window.of(limit, period + jitter, grains=VENDOR_GRAINS),)
    return (Bucket.of(limit, period + jitter),)


def utilisation(period: float, jitter: float, mechanism: str) -> float:
    """The part of the quota that remains usable, 0 < u ≤ 1."""
    return 1.0 if mechanism == "bucket" else period / (period + jitter)
