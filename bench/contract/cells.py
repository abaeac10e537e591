"""What is run: mechanisms × jitters × costs, ours beside others and beside controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

PODS = 10
PER_MINUTE = 600

FLOOR = 0.05
"""Seconds of jitter that a policy assumes at least, by default."""

OVERLOAD = 5.0

Mechanism = Literal["bucket", "sliding", "fixed"]

MECHANISMS: dict[str, tuple[Mechanism, float]] = {
    "bucket 60 s": ("bucket", 60.0),
    "bucket 1 s": ("bucket", 1.0),
    "sliding 60 s": ("sliding", 60.0),
    "sliding 10 s": ("sliding", 10.0),
    "fixed 60 s": ("fixed", 60.0),
}
"""How vendors enforce, and over how many seconds; of a bucket, how many seconds' worth it holds."""

OTHERS = ("another design", "limits", "pyrate-limiter", "throttled-py", "aiolimiter")
"""Limiters that a fleet could use instead (`peers.py`)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    jitter    seconds that a call may take to arrive, at most
    assumed   the jitter that the policy names, None: the true one, and at least `FLOOR`
    window    seconds over which the vendor counts; of a bucket, the seconds' worth that it holds
    overload  demand, as a multiple of the quota
    tokens    the quota is so many tokens a minute, and calls cost 200 to 4,000; 0: 600 calls a minute
    limiter   `headworks`: one store for all pods; `divided`: a store and a tenth of the quota each;
              `off`: none at all; else one of `OTHERS`
    seconds   that are measured, after a first minute that is not
    """

    name: str
    mechanism: Mechanism
    window: float = 60.0
    jitter: float = 0.05
    assumed: float | None = None
    overload: float = OVERLOAD
    tokens: int = 0
    limiter: str = "headworks"
    per_minute: int = PER_MINUTE
    seconds: float = 540.0

    @property
    def allowed_for(self) -> float:
        """Seconds of jitter that the pods reckon with."""
        return max(self.jitter, FLOOR) if self.assumed is None else self.assumed

    @property
    def calls(self) -> float:
        """Calls a second that use the quota up."""
        return self.tokens / MEAN / 60 if self.tokens else self.per_minute / 60


LEAST, MOST = 200, 4000
MEAN = (LEAST + MOST) / 2
"""Tokens of a call, where the quota counts them."""


def cells(*, quick: bool) -> list[Cell]:
    """Every cell of the contract; `quick` keeps one jitter, and one mechanism for the others."""
    seconds = 120.0 if quick else 540.0
    jitters = (0.05,) if quick else (0.0, 0.05, 0.25)
    ours = [
        Cell(f"{name}, {jitter * 1000:g} ms", mechanism, window, jitter, seconds=seconds)
        for name, (mechanism, window) in MECHANISMS.items()
        for jitter in jitters
    ]
    tokens = [
        Cell(f"tokens, {jitter * 1000:g} ms", "sliding", 60.0, jitter, tokens=1_260_000, seconds=seconds)
        for jitter in jitters
    ]
    return [
        *ours,
        *tokens,
        Cell("60 a second", "bucket", 1.0, per_minute=3600, seconds=60.0 if quick else 120.0),
        Cell("uneven", "bucket", 1.0, overload=1.2, seconds=seconds),
        *controls(quick=quick),
        *others(quick=quick),
    ]


def controls(*, quick: bool) -> list[Cell]:
    """The same fleet with something missing: each must fail where ours does not."""
    seconds = 120.0 if quick else 540.0
    off = [
        Cell(f"{name}, off", mechanism, window, limiter="off", seconds=120.0)
        for name, (mechanism, window) in MECHANISMS.items()
    ]
    return [
        *off,
        Cell("tokens, off", "sliding", tokens=1_260_000, limiter="off", seconds=120.0),
        Cell("sliding 10 s, without J", "sliding", 10.0, 0.25, assumed=0.0, seconds=seconds),
        Cell("uneven, divided", "bucket", 1.0, overload=1.2, limiter="divided", seconds=seconds),
    ]


def others(*, quick: bool) -> list[Cell]:
    """What else a fleet could use, in the same places."""
    places = ["sliding 10 s"] if quick else list(MECHANISMS)
    found = []
    for name in places:
        mechanism, window = MECHANISMS[name]
        cell = Cell(name, mechanism, window, seconds=120.0 if quick else 540.0)
        found += [replace(cell, name=f"{name}, {other}", limiter=other) for other in OTHERS]
    return found
