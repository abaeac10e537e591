"""One vendor as its users meet it: an HTTP client for SDKs, and a context for everything else."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import httpx2

from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.current import current
from headworks.limits.breaker import BreakerRules, Ending
from headworks.policy.profiles import Profile
from headworks.policy.settings import VendorSettings
from headworks.policy.units import Rate
from headworks.store.protocol import Store
from headworks.telemetry import Telemetry
from headworks.vendor.dispatcher import Dispatcher
from headworks.vendor.estimate import Tokenizer
from headworks.vendor.gate import GateCache
from headworks.vendor.pipeline import Attempt, Pipeline
from headworks.vendor.quota import Quota
from headworks.vendor.retry import Retry
from headworks.vendor.slots import Slots
from headworks.vendor.smoother import Smoother
from headworks.vendor.transport import VendorTransport, no_cookies
from headworks.vendor.wish import Around, Wish, Wishes

PROBE = 15.0
"""Seconds after which a breaker's probe that was never heard of again gives its place back, beyond
the call timeout."""


@dataclass(frozen=True, slots=True)
class VendorStatistics:
    """late: bookings given back because this pod came to them too late ·
    waiting: calls in line · booked: send times held · in_flight, highest_in_flight: calls out ·
    free: slots · epoch, shut_for: the gate as last heard, in seconds"""

    late: int
    waiting: int
    booked: int
    in_flight: int
    highest_in_flight: int
    free: int
    epoch: int
    shut_for: float


class VendorCall:
    """A call made by other means than our client; lives inside `Vendor.call`."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def settle(
        self, *, tokens: int | None = None, ending: Ending = Ending.OK, retry_after: float = 0.0
    ) -> None:
        """Say what the call cost and how it ended, once it is known; it takes effect, and the slot
        returns, when the block ends. Called again, the last word counts; after the block, none does.

        tokens       units actually charged by the vendor, ≥ 0
        ending       `Ending.OVERLOADED` for a 429, `Ending.FAILED` for a failure of the vendor's; any
                     but `OK` stands whatever the block raises
        retry_after  seconds for which the whole fleet shall pause, after a 429
        """
        used = {} if tokens is None else {"tokens": max(tokens, 0)}
        self._attempt.note(ending, used=used, cool_down=retry_after)


class Vendor:
    """A rate-limited API behind its line, quota, breaker and slots.

    client    an `httpx2.AsyncClient` whose every request passes the pipeline; hand it to SDKs. It raises
              `RuntimeError` in any event loop but the application's
    base_url  the only origin it will talk to
    """

    def __init__(
        self,
        name: str,
        settings: VendorSettings,
        profile: Profile,
        *,
        store: Store,
        telemetry: Telemetry,
        reaper: Reaper,
        home: OneLoop,
        pod: str,
        replicas: int,
        rng: random.Random,
        now: Callable[[], datetime],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.name, self.base_url, self._home = name, settings.base_url, home
        self._slots, self._gate = Slots(settings.slots), GateCache(name, telemetry)
        smoother, rules = _smoother(settings), _rules(settings)
        self._lanes = {
            model: Dispatcher(
                name,
                quota=Quota(name, settings, profile, model, now=now),
                rules=rules,
                gate=self._gate,
                slots=self._slots,
                smoother=smoother,
                store=store,
                reaper=reaper,
                telemetry=telemetry,
                pod=pod,
                replicas=replicas,
                queue_timeout=settings.queue_timeout,
                expected_latency=settings.expected_latency,
                jitter=settings.jitter,
                rng=rng,
            )
            for model in ("", *settings.models)
        }
        self._pipeline = Pipeline(
            name,
            lanes=self._lanes,
            retry=Retry(settings.attempts, rng),
            call_timeout=settings.call_timeout,
            telemetry=telemetry,
        )
        self._wishes = Wishes(name)
        self._transport = VendorTransport(
            name,
            settings,
            profile,
            self._pipeline,
            engine=_client(settings, transport),
            reaper=reaper,
            home=home,
            wishes=self._wishes,
            counts_tokens=any(rate.unit != "requests" for rate in _quotas(settings)),
            now=now,
        )
        self.client = _client(settings, self._transport)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Counts the tokens of a prompt's texts, (model, text) -> tokens; None: four characters each.

        Long texts are counted in a thread. One that raises is logged, and the estimate stands.
        """
        return self._transport.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | None) -> None:
        self._transport.tokenizer = tokenizer

    def as_(
        self, tenant: str | None = None, *, criticality: str | None = None, tokens: int | None = None
    ) -> Around:
        """A block (`with llm.as_(…):`) whose calls are made for somebody else than the request being
        served: jobs above all, which no request stands for.

        tenant       whose share of the line they come out of
        criticality  their class: background, sheddable, default or critical
        tokens       what each is expected to cost, instead of the estimate, ≥ 0

        What is not said stays as it is, in an inner block as in the outer one. The headers
        `x-headworks-tenant`, `-criticality` and `-tokens` of a single request say the same, and over
        it; the vendor does not see them. Raises `ValueError` for what cannot be.
        """
        return self._wishes.around(Wish.of(tenant, criticality, tokens))

    @asynccontextmanager
    async def call(self, *, tokens: int = 0, model: str = "") -> AsyncIterator[VendorCall]:
        """Hold a booking and a slot around a call made by any asynchronous client.

        tokens  what the call is expected to cost, where the vendor counts tokens, ≥ 0; correct it with
                `settle` once it is known
        model   whose own quota counts too, where the policy gives it one

        Raises `Refused` when the call may not be made, `CallTimeout` when the block takes longer
        than the policy's call_timeout, `VendorFailed` from an `OSError` inside the block, and
        `RuntimeError` in any event loop but the application's.
        """
        if tokens < 0:
            raise ValueError(f"tokens: {tokens} must be 0 or more")
        self._home.enter(f"vendor '{self.name}'")
        wish = self._wishes.now()
        cost = wish.cost({"requests": 1, "tokens": tokens, "input_tokens": tokens})
        async with self._pipeline.hold(model, cost, wish.standing(current(), math.inf)) as attempt:
            yield VendorCall(attempt)

    def statistics(self) -> VendorStatistics:
        """How things stand now."""
        return VendorStatistics(
            late=sum(lane.late for lane in self._lanes.values()),
            waiting=sum(lane.waiting for lane in self._lanes.values()),
            booked=sum(lane.booked for lane in self._lanes.values()),
            in_flight=self._slots.held,
            highest_in_flight=self._slots.highest_held,
            free=self._slots.free,
            epoch=self._gate.epoch,
            shut_for=self._gate.wait(asyncio.get_running_loop().time()),
        )

    async def aclose(self) -> None:
        """Refuse who waits, give bookings back, close the connections."""
        for lane in self._lanes.values():
            await lane.aclose()
        await self.client.aclose()


def _client(settings: VendorSettings, transport: httpx2.AsyncBaseTransport | None) -> httpx2.AsyncClient:
    """A client with the policy's timeouts and pool; with the environment's proxies if no transport."""
    pool = settings.connections
    return httpx2.AsyncClient(
        base_url=settings.base_url,
        limits=httpx2.Limits(max_connections=pool.max, max_keepalive_connections=pool.keepalive),
        timeout=httpx2.Timeout(**settings.timeouts.model_dump()),
        transport=transport,
        cookies=no_cookies(),
    )


def _quotas(settings: VendorSettings) -> Iterator[Rate]:
    """Every quota of the vendor, its models' own included."""
    yield from settings.quota
    for model in settings.models.values():
        yield from model.quota


def _smoother(settings: VendorSettings) -> Smoother:
    smoothing = settings.smoothing
    return Smoother(smoothing.period / smoothing.amount if smoothing else 0.0)


def _rules(settings: VendorSettings) -> BreakerRules:
    breaker = settings.breaker
    return BreakerRules(
        failure_ratio=breaker.failure_ratio,
        min_calls=breaker.min_calls,
        window_us=round(breaker.window * 1e6),
        open_us=round(breaker.open_for * 1e6),
        probes=breaker.probes,
        probe_us=round((settings.call_timeout + PROBE) * 1e6),
    )
