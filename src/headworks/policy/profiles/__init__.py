"""What is known about vendors, as data: one TOML file per profile, each fact with its evidence.

A profile says how the vendor enforces its limits, what it charges, whether it gives back,
how its headers speak, and where usage stands in its answers. Each fact is `documented` by the vendor
or `inferred` from what it was seen to do, and says from what.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from headworks.policy.units import Rate, Unit

Mechanism = Literal["bucket", "sliding", "fixed"]
TokenCharge = Literal["max", "prompt+max", "prompt", "none"]
OutputCharge = Literal["ceiling", "live"]
Dialect = Literal["openai", "anthropic", "generic"]


class Fact(BaseModel):
    """One thing known about a vendor: its value, how surely, and from where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Any
    known: Literal["documented", "inferred"]
    source: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Charges:
    """What one call costs, and when the vendor counts it.

    tokens         the charge in tokens, where a quota counts them: `max`: the larger of the most the
                   call may generate and the prompt's estimate; `prompt+max`: their sum; `prompt`: the
                   prompt alone, output as it is generated; `none`: not counted
    output         the charge where a quota counts output tokens: `ceiling`: the most the call may
                   generate; `live`: what is generated, as it is
    failed_calls   calls that the vendor failed count as well
    rejected_calls calls that the vendor rejected with a 429 count as well
    choices        several answers to one prompt (`n`) multiply the charge
    """

    tokens: TokenCharge
    output: OutputCharge
    failed_calls: bool
    rejected_calls: bool
    choices: bool


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """How the vendor's headers speak. Names are in lower case; `{unit}` stands for what is counted.

    dialect      by which rules resets are read: `openai`: a duration such as `6m0s`; `anthropic`: an
                 RFC 3339 time; `generic`: seconds
    limit, remaining, reset   empty when the vendor sends none; a reset means *full* refill
    units        the words the vendor uses for what we count
    retry_after  where a rejected call is told when to come back, the most precise first
    """

    dialect: Dialect
    limit: str
    remaining: str
    reset: str
    units: dict[Unit, str]
    retry_after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Where an answer says what it used: dotted paths into its JSON, empty where it does not.

    total, input, output   in an answer or an event of a stream. Several paths are added up, those of
                           them that are there; without a total it is input and output together
    stream                 events of a stream that carry usage: `last-chunk` (chat completions, only if
                           asked for), `message-events` (start and delta), `none`
    stream_option          the dotted path of the request's switch that asks for it, empty for none
    stream_calls           how the paths of calls end that know this switch
    """

    total: tuple[str, ...]
    input: tuple[str, ...]
    output: tuple[str, ...]
    stream: Literal["last-chunk", "message-events", "none"]
    stream_option: str
    stream_calls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known about one vendor.

    mechanism  how it enforces: a token `bucket`, a `sliding` window or a `fixed` one
    window     seconds over which it counts requests, where shorter than the quota's period; None: the
               quota's own period
    burst      requests a bucket lets through at once, in seconds of the quota's rate; None: the whole
               quota. Tokens, and quotas over an hour or more: the whole quota always
    day        the time zone at whose midnight a quota per day starts anew; `rolling`: any 24 hours
    refunds    charges come back when a call used less than was charged
    evidence   every fact by its name, with how surely it is known and from where
    """

    name: str
    title: str
    mechanism: Mechanism
    day: str
    refunds: bool
    charges: Charges
    headers: HeaderNames
    usage: Usage
    evidence: dict[str, Fact]
    window: float | None = None
    burst: float | None = None

    def window_of(self, rate: Rate) -> float:
        """Seconds over which the vendor counts a quota: never so few that not one unit fits."""
        if self.window is None or rate.unit != "requests" or rate.counted:
            return rate.period
        return min(rate.period, max(self.window, 1 / rate.per_second))

    def capacity_of(self, rate: Rate) -> int:
        """Units the vendor admits at once of an unused quota, at least 1.

        Of a bucket its capacity (the burst that the quota states, if it does), of a window the part
        of the quota that falls into it: `600/min` in windows of ten seconds is 100.
        """
        if self.mechanism != "bucket":
            seconds = self.window_of(rate)
        elif rate.burst is not None:
            return rate.burst
        elif self.burst is not None and rate.unit == "requests" and not rate.counted:
            seconds = self.burst
        else:
            return rate.amount
        return max(1, min(rate.amount, int(rate.per_second * seconds + 1e-9)))


@cache
def profile_names() -> tuple[str, ...]:
    """The names of all profiles, sorted."""
    found = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


@cache
def profile_named(name: str) -> Profile:
    """The profile of that name; `KeyError` names the known ones."""
    if name not in profile_names():
        raise KeyError(f"there is no vendor profile {name!r}; known: {', '.join(profile_names())}")
    text = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    evidence = TypeAdapter(dict[str, Fact]).validate_python(tables.pop("facts"))
    facts = {fact: known.value for fact, known in evidence.items()}
    return TypeAdapter(Profile).validate_python(_nested(facts) | tables | {"evidence": evidence})


def _nested(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts by dotted name as nested tables."""
    tables: dict[str, Any] = {}
    for name, value in facts.items():
        *path, last = name.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tables
