"""`[vendors.NAME]`: the contract with one vendor and how this service keeps it (layer 5)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from headworks.policy.fields import (
    BaseUrl,
    Choice,
    Day,
    Name,
    Quota,
    Ratio,
    RequestRate,
    Seconds,
    Section,
    Whole,
)
from headworks.policy.units import Rate


class ConnectionSettings(Section):
    """The vendor's connection pool in one pod."""

    max: Annotated[int, Whole(1, 10_000)] = 50
    """Connections open at once, busy and idle; at least `slots`."""
    keepalive: Annotated[int, Whole(0, 10_000)] = 20
    """Idle connections kept open for the next call."""


class TimeoutSettings(Section):
    """The transport's four timeouts; each bounds one step, none bounds the whole call."""

    connect: Annotated[float, Seconds(0.01, 60)] = 5.0
    """Opening a connection, TLS included."""
    pool: Annotated[float, Seconds(0.01, 60)] = 5.0
    """Waiting for a connection of the pool."""
    write: Annotated[float, Seconds(0.01, 600)] = 10.0
    """Sending one piece of the request."""
    read: Annotated[float, Seconds(0.01, 3600)] = 30.0
    """Waiting for the next piece of the answer."""


class BreakerSettings(Section):
    """The circuit breaker, shared by all pods."""

    failure_ratio: Annotated[float, Ratio()] = 0.5
    """Opens when this part of the calls within `window` failed."""
    min_calls: Annotated[int, Whole(1, 100_000)] = 20
    """But never on fewer calls than this."""
    window: Annotated[float, Seconds(1, 3600)] = 30.0
    """How far back calls are counted."""
    open_for: Annotated[float, Seconds(0.1, 3600)] = 60.0
    """How long it stays open before probes are let through."""
    probes: Annotated[int, Whole(1, 100)] = 2
    """Calls let through half-open, all of which must succeed to close it."""


class ModelSettings(Section):
    """A narrower contract for one model of the vendor, on top of the account's."""

    quota: Annotated[Quota, Field(min_length=1)]
    """The vendor's limits for this model; all of them hold, together with the account's."""

    _distinct = field_validator("quota")(lambda quota: distinct(quota))


class VendorSettings(Section):
    """One vendor: what it allows, and how this service uses it."""

    base_url: BaseUrl
    """Where the vendor answers; a client pointed at another origin is refused."""
    quota: Annotated[Quota, Field(min_length=1)]
    """The vendor's limits for the account, as its contract states them; all of them hold together."""
    day: Day | None = None
    """Where quotas per day start anew at midnight: the vendor's time zone; `rolling`: a day is any 24
    hours; absent: what the profile says."""
    profile: str = "generic"
    """What is known about how the vendor enforces, charges and answers."""
    account: Name = "main"
    """Whose quota this is: services that name the same vendor and account on one store share it."""
    share: Annotated[float, Ratio()] = 1.0
    """The part of the account's quota that is this service's."""
    slots: Annotated[int, Whole(1, 10_000)] = 50
    """Calls in flight at once, per pod."""
    expected_latency: Annotated[float, Seconds(0.001, 600)] = 4.0
    """How long a call usually takes; sizes pods against the quota."""
    smoothing: RequestRate | None = None
    """A second, local pace per pod; absent: the shared quota alone decides."""
    queue_timeout: Annotated[float, Seconds(0.01, 600)] = 5.0
    """How long a caller may wait before it sends: line, smoother and booking together."""
    limiter_timeout: Annotated[float, Seconds(0.01, 600)] = 3.0
    """How far ahead a booking may lie."""
    call_timeout: Annotated[float, Seconds(0.01, 3600)] = 30.0
    """How long one attempt may take; of a stream, until its first byte, and each gap after it."""
    attempts: Annotated[int, Whole(1, 10)] = 3
    """Attempts per call, the first included; 1 never retries."""
    jitter: Annotated[float, Seconds(0, 10)] = 0.05
    """The spread of the time from a permitted send to its arrival at the vendor, at least."""
    when_down: Annotated[Literal["share", "closed"], Choice(("share", "closed"))] = "closed"
    """Without the store: calls wait for it; or each pod its share, which may break the contract."""
    connections: ConnectionSettings = ConnectionSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    breaker: BreakerSettings = BreakerSettings()
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """Narrower contracts, by the model's name."""

    _distinct = field_validator("quota")(lambda quota: distinct(quota))


def distinct(quota: tuple[Rate, ...]) -> tuple[Rate, ...]:
    """The quota, unless it limits the same unit over the same period twice."""
    seen: dict[tuple[str, float], Rate] = {}
    for rate in quota:
        other = seen.setdefault((rate.unit, rate.period), rate)
        if other is not rate:
            raise ValueError(f'"{other}" and "{rate}" limit the same thing; keep the tighter one')
    return quota
