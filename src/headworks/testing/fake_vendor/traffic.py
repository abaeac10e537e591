"""How the fake vendor misbehaves: delays and faults, written as people say them.

    latency          `const:1s`, `uniform:200ms:2s`, `lognormal:0.8s:0.5` (median, sigma of the log)
    arrival jitter   `0:250ms`: uniform between the two, spent before the vendor decides

Every parser raises `ValueError` naming the value and what would be right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from headworks.policy.units import parse_duration, parse_rate
from headworks.testing.fake_vendor.judge import REQUESTS, Limit


def limit(
    text: str,
    *,
    unit: str = REQUESTS,
    mechanism: str = "bucket",
    window: float | None = None,
    burst: int | None = None,
    model: str = "",
) -> Limit:
    """The limit of `500/min`, `40000 tokens/min`, `10/s burst 3`.

    unit    what the rate counts where it does not say so itself
    window  seconds over which the same rate is enforced instead of its own period, as vendors do
            that enforce 600/min as 100 in 10 s
    burst   capacity of a bucket; a burst written in the text wins
    """
    rate = parse_rate(text)
    window_us, period_us = round((window or rate.period) * 1e6), round(rate.period * 1e6)
    within = rate.amount * window_us // period_us
    if within < 1:
        raise ValueError(
            f"'{text}' allows less than one in {window_us / 1e6:g} s; enforce it over a wider window"
        )
    counted = unit if rate.unit == REQUESTS else rate.unit
    return Limit(
        counted, within, window_us, mechanism, burst if rate.burst is None else rate.burst, model
    )


def model_limits(text: str, *, mechanism: str = "bucket", window: float | None = None) -> list[Limit]:
    """The limits of `gpt-large=60/min,40000 tokens/min`, on top of those of every call."""
    name, equals, rates = text.partition("=")
    if not (name.strip() and equals and rates.strip()):
        raise ValueError(
            f"'{text}' is not a model's limits; write for example gpt-large=60/min,40000 tokens/min"
        )
    return [limit(r, mechanism=mechanism, window=window, model=name.strip()) for r in rates.split(",")]


def _seconds(text: str) -> float:
    """A duration; a bare number counts seconds."""
    return parse_duration(f"{text}s" if text.isdecimal() else text)


@dataclass(frozen=True, slots=True)
class Delay:
    """A distribution of seconds: `const` a · `uniform` a to b · `lognormal` median a, sigma b."""

    kind: str
    a: float
    b: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Delay:
        """`const:1s`, `uniform:200ms:2s`, `lognormal:0.8s:0.5`, or the short form `0:250ms`."""
        kind, *parts = text.strip().split(":")
        try:
            if kind == "const" and len(parts) == 1:
                return cls(kind, _seconds(parts[0]))
            if kind == "lognormal" and len(parts) == 2:
                median, sigma = _seconds(parts[0]), float(parts[1])
                if median > 0 and 0 <= sigma <= 5:
                    return cls(kind, median, sigma)
            bounds = parts if kind == "uniform" else [kind, *parts]
            if len(bounds) == 2 and _seconds(bounds[0]) <= _seconds(bounds[1]):
                return cls("uniform", _seconds(bounds[0]), _seconds(bounds[1]))
        except ValueError:
            pass  # answered below, with all the forms
        raise ValueError(
            f"'{text}' is not a delay; write const:1s, uniform:200ms:2s, 0:250ms (uniform), "
            "or lognormal:0.8s:0.5 (median > 0, sigma 0 to 5)"
        )

    def sample(self, rng: random.Random) -> float:
        if self.kind == "const":
            return self.a
        if self.kind == "uniform":
            return rng.uniform(self.a, self.b)
        return rng.lognormvariate(math.log(self.a), self.b)

    def __str__(self) -> str:
        if self.kind == "const":
            return f"const:{self.a:g}s"
        return f"{self.kind}:{self.a:g}s:{self.b:g}" + ("s" if self.kind == "uniform" else "")


NONE = Delay("const", 0.0)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose; changed at run time by `POST /faults`.

    latency         from acceptance to the end of the answer; a stream's chunks are spread over it
    arrival_jitter  from the request's arrival to the decision: models the network
    fail_ratio      0 to 1: accepted calls answered `fail_status` after their latency
    fail_status     400 to 599, e.g. 429, 500 or 529
    hang            accepted calls are never answered
    disconnect      None, or the number of chunks (for a plain answer: bytes) after which the
                    connection is closed
    error_after     None, or the number of chunks of a stream after which it tells an error of
                    `fail_status`, under the status 200 that it began with, and ends
    """

    latency: Delay = NONE
    arrival_jitter: Delay = NONE
    fail_ratio: float = 0.0
    fail_status: int = 500
    hang: bool = False
    disconnect: int | None = None
    error_after: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fail_ratio <= 1:
            raise ValueError(f"fail_ratio: {self.fail_ratio!r} must be a number from 0 to 1")

    def changed(self, wanted: Mapping[str, Any]) -> Faults:
        """A copy with the named fields changed. Raises `ValueError` naming field, value and remedy."""
        new: dict[str, Any] = {}
        for field, value in wanted.items():
            if field in ("latency", "arrival_jitter"):
                if not isinstance(value, str):
                    raise ValueError(f"{field}: {value!r} must be text like const:1s or 0:250ms")
                try:
                    new[field] = Delay.parse(value)
                except ValueError as error:
                    raise ValueError(f"{field}: {error}") from None
            elif field == "fail_ratio":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise ValueError(f"fail_ratio: {value!r} must be a number from 0 to 1")
                new[field] = float(value)
            elif field == "fail_status":
                if type(value) is not int or not 400 <= value <= 599:
                    raise ValueError(f"fail_status: {value!r} must be a status from 400 to 599")
                new[field] = value
            elif field == "hang":
                if not isinstance(value, bool):
                    raise ValueError(f"hang: {value!r} must be true or false")
                new[field] = value
            elif field in ("disconnect", "error_after"):
                if value is not None and (type(value) is not int or value < 0):
                    raise ValueError(f"{field}: {value!r} must be null or a count of chunks, 0 or more")
                new[field] = value
            else:
                raise ValueError(f"{field}: unknown; there are {', '.join(asdict(self))}")
        return replace(self, **new)

    def as_json(self) -> dict[str, Any]:
        return {
            "latency": str(self.latency),
            "arrival_jitter": str(self.arrival_jitter),
            "fail_ratio": self.fail_ratio,
            "fail_status": self.fail_status,
            "hang": self.hang,
            "disconnect": self.disconnect,
            "error_after": self.error_after,
        }
