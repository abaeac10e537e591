"""Who sends what, when: traffic profiles as data, and the schedule of arrivals they mean.

A profile is a few crowds. A crowd is a set of clients (a key and a loopback address each) that share
a rate and a mix of calls. Arrivals are open-loop: they come when they come, however slow the answers
are. They form a Poisson process, thinned (Lewis and Shedler, 1979) where the rate changes with time;
an `even` crowd sends like clockwork instead.

Rates are requests per second, times are seconds from the start.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of request. `body` is sent as JSON."""

    name: str
    method: str
    path: str
    body: str = ""


CHAT = Call("chat", "POST", "/chat", json.dumps({"message": "Why do canals have weirs?"}))
STREAM = Call("stream", "POST", "/chat", json.dumps({"message": "Describe a weir.", "stream": True}))
SEARCH = Call("search", "GET", "/search?q=weir")
ANALYZE = Call("analyze", "POST", "/analyze", json.dumps({"text": "The canal froze, and we skated."}))


@dataclass(frozen=True, slots=True)
class Bursts:
    """The last `length` seconds of every `period` seconds run at `factor` times the rate."""

    period: float
    length: float
    factor: float

    def at(self, seconds: float) -> float:
        """What the rate is multiplied by at that time."""
        return self.factor if seconds % self.period >= self.period - self.length else 1.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients alike. Client i has `keys[i]` ("" sends none) and `sources[i % len(sources)]`.

    rate    requests per second, all clients together, outside bursts
    mix     the calls they make; one is drawn for each request, an `even` crowd takes them in turn
    even    sends at equal distances instead of at random
    scaled  a different `--rate` changes this crowd's; a polite crowd stays as it is
    """

    name: str
    about: str
    rate: float
    keys: tuple[str, ...]
    sources: tuple[str, ...]
    mix: tuple[Call, ...]
    bursts: Bursts | None = None
    even: bool = False
    scaled: bool = True


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to send `at` seconds after the start."""

    at: float
    crowd: str
    call: Call
    key: str
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A named kind of traffic."""

    name: str
    about: str
    crowds: tuple[Crowd, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Every loopback address the profile sends from."""
        return tuple(sorted({source for crowd in self.crowds for source in crowd.sources}))

    @property
    def rate(self) -> float:
        """Requests per second of all crowds together, outside bursts."""
        return sum(crowd.rate for crowd in self.crowds)

    def scaled(self, rate: float) -> Profile:
        """The same profile at `rate` requests per second for its scaled crowds together."""
        factor = rate / sum(crowd.rate for crowd in self.crowds if crowd.scaled)
        crowds = (replace(c, rate=c.rate * factor) if c.scaled else c for c in self.crowds)
        return replace(self, crowds=tuple(crowds))

    def shots(self, seconds: float, *, seed: int) -> Iterator[Shot]:
        """Every request of a run of so many seconds, in order; the same for the same seed."""
        streams = (_shots(c, seconds, random.Random(f"{seed}/{c.name}")) for c in self.crowds)
        return heapq.merge(*streams, key=attrgetter("at"))


def _shots(crowd: Crowd, seconds: float, rng: random.Random) -> Iterator[Shot]:
    for index, at in enumerate(_even(crowd, seconds) if crowd.even else _poisson(crowd, seconds, rng)):
        call = crowd.mix[index % len(crowd.mix)] if crowd.even else rng.choice(crowd.mix)
        client = rng.randrange(len(crowd.keys))
        yield Shot(at, crowd.name, call, crowd.keys[client], crowd.sources[client % len(crowd.sources)])


def _even(crowd: Crowd, seconds: float) -> Iterator[float]:
    for index in range(round(crowd.rate * seconds)):
        yield (index + 0.5) / crowd.rate


def _poisson(crowd: Crowd, seconds: float, rng: random.Random) -> Iterator[float]:
    peak = crowd.rate * (crowd.bursts.factor if crowd.bursts else 1.0)
    at = rng.expovariate(peak)
    while at < seconds:
        if crowd.bursts is None or rng.random() * peak < crowd.rate * crowd.bursts.at(at):
            yield at
        at += rng.expovariate(peak)


# free-1 and free-2 are left to whoever tries the service by hand, pro-9 to the polite client.
CUSTOMERS = (
    *(f"free-{n}" for n in range(3, 100)),
    *(f"pro-{n}" for n in range(1, 9)),
    *(f"enterprise-{n}" for n in range(1, 4)),
)
STREETS = tuple(f"127.0.2.{n}" for n in range(1, 21))

POLITE = Crowd(
    name="polite",
    about="one client on its own address with its own key, well below its limits",
    rate=0.75,
    keys=("pro-9",),
    sources=("127.0.3.1",),
    mix=(CHAT, SEARCH, SEARCH),
    even=True,
    scaled=False,
)

STEADY = Profile(
    "steady",
    "108 customers on 20 addresses ask for just about the LLM vendor's quota: 495 of 500 calls a minute",
    (
        Crowd(
            name="customers",
            about="108 keys, each far below its own limits",
            rate=9.4,
            keys=CUSTOMERS,
            sources=STREETS,
            mix=(CHAT,) * 35 + (STREAM,) * 3 + (ANALYZE,) + (SEARCH,) * 8,
        ),
        POLITE,
    ),
)

BURST = Profile(
    "burst",
    "the same customers: quiet for seven seconds, then ten times as many for three, again and again",
    (
        Crowd(
            name="customers",
            about="108 keys; 4 requests a second, 40 during a burst",
            rate=4.0,
            keys=CUSTOMERS,
            sources=STREETS,
            mix=(CHAT,) * 9 + (STREAM,) + (SEARCH,) * 2,
            bursts=Bursts(period=10.0, length=3.0, factor=10.0),
        ),
        POLITE,
    ),
)

FLOOD = Profile(
    "flood",
    "four addresses send 500 requests a second each with invented keys, while customers ask for 140 % "
    "of the LLM vendor's quota and one polite client goes about its business",
    (
        Crowd(
            name="flood",
            about="four addresses, 1,000 invented keys",
            rate=2000.0,
            keys=tuple(f"invented-{n}" for n in range(1000)),
            sources=("127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4"),
            mix=(CHAT, SEARCH),
        ),
        Crowd(
            name="customers",
            about="108 keys, each below its own limits, together above the vendor's quota",
            rate=14.0,
            keys=CUSTOMERS,
            sources=STREETS,
            mix=(CHAT,) * 9 + (STREAM,) + (SEARCH,) * 2,
        ),
        POLITE,
    ),
)

PROFILES = {profile.name: profile for profile in (STEADY, BURST, FLOOD)}
