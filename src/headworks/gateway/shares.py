"""What every edge holds, whatever its product: the policy's limits, as one gateway is to count them.

Gateways that count for themselves get equal parts: the sum never passes the policy's limit, and a
client that keeps to one connection gets one gateway's part of its own. Formula: limit / replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from headworks.policy.settings import Policy
from headworks.policy.units import Rate, duration_text

PER_IP_BURST, TOTAL_BURST = 1.0, 0.2
"""Seconds' worth of requests that may come at once where the policy's rate names no burst."""
LEAST_BURST = 2
"""Requests that may come at once at least: one alone would refuse every client that hurries once."""
IDLE_SHARE = 0.8
"""An idle connection is dropped here before the pod drops it, or a request would meet its closing."""
SILENCES, CHECK_TIMEOUT = 2, 1.0
"""So many checks in a row without an answer take a pod out; no answer by then (seconds) is none."""
SHADOW = "X-Headworks-Shadow"
"""The header that marks, for the pods, what would have been refused: with `gateway.mode = "shadow"`."""
HIDDEN = "^/(live|ready|health|metrics)(/.*)?$"
"""What pods say to probes and scrapers, which is not for the world: paths as a regular expression."""


@dataclass(frozen=True, slots=True)
class Share:
    """One gateway's part of a rate.

    per_second  requests per second, exactly
    burst       requests that may come at once, ≥ 1
    why         the policy fields it comes from
    """

    per_second: Fraction
    burst: int
    why: str


def total(policy: Policy) -> Share:
    """Requests of all clients together."""
    return _share(policy, policy.gateway.total_rate, TOTAL_BURST, "gateway.total_rate")


def per_ip(policy: Policy) -> Share:
    """Requests of one client address."""
    return _share(policy, policy.gateway.per_ip_rate, PER_IP_BURST, "gateway.per_ip_rate")


def per_ip_connections(policy: Policy) -> tuple[int, str]:
    """Requests in progress of one client address, and why."""
    gateway = policy.gateway
    return max(1, gateway.per_ip_connections // gateway.replicas), _per_replica(
        policy, "gateway.per_ip_connections"
    )


def pause(policy: Policy) -> int:
    """Whole seconds after which a client over its own rate may come back."""
    rate = policy.gateway.per_ip_rate
    return max(1, math.ceil(rate.period / rate.amount))


def idle(policy: Policy) -> tuple[float, str]:
    """Seconds a gateway keeps an idle connection to a pod, and why."""
    return policy.admission.keep_alive * IDLE_SHARE, f"{IDLE_SHARE} × admission.keep_alive"


class Address(NamedTuple):
    """Where a pod listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def milliseconds(seconds: float) -> str:
    """A duration as most edges read it: whole milliseconds."""
    return f"{max(1, round(seconds * 1000))}ms"


def _share(policy: Policy, rate: Rate, worth: float, field: str) -> Share:
    replicas = policy.gateway.replicas
    per_second = Fraction(rate.amount) / Fraction(rate.period).limit_denominator(1_000_000)
    burst = rate.burst or max(LEAST_BURST, round(per_second * Fraction(worth)))
    why = _per_replica(policy, field)
    if rate.burst is None:
        why += f", {duration_text(worth)} of it at once"
    return Share(per_second / replicas, max(1, burst // replicas), why)


def _per_replica(policy: Policy, field: str) -> str:
    return field if policy.gateway.replicas == 1 else f"{field} / gateway.replicas"
