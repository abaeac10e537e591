"""The parts of the works that take more than a constructor, built from the policy."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

import httpx2
from starlette.types import ASGIApp, Scope

from headworks.admission import AdmissionGate, Answers, Pressure, Slots, StatedClass
from headworks.admission.pressure import container_memory, resident_memory
from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.current import Criticality
from headworks.errors import PolicyError, Problem
from headworks.fairness import Ahead, Fairness, Limits, Routes, Rules
from headworks.fairness.limits import when_down_of
from headworks.health import Management, Pages
from headworks.identity import Caller, Callers, Identifier, Rank, Resolver
from headworks.policy.profiles import profile_named
from headworks.policy.settings import AdmissionSettings, Policy, WhenDown
from headworks.store.deny import DenyCache
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore
from headworks.telemetry import Changed, Telemetry
from headworks.vendor import Vendor
from headworks.vendor.quota import Quota

log = logging.getLogger("headworks")

TOGETHER: Final = 24
"""Questions in one call to the store, at most. What comes back together goes on together, each as a
task: of many at once less stays in the processor's caches, and more is left to the collector.
"""
BELOW_CONTAINER: Final = 0.9
"""The part of a container's memory at which shedding must have begun."""


def store_of(
    policy: Policy, telemetry: Telemetry, rng: random.Random, without: Mapping[str, WhenDown]
) -> Store:
    """What the policy names, with a ladder to stand on when it is away; else this process's memory.

    without  `without_store` of the policy that is in force
    """
    if policy.store is None:
        return MemoryStore()
    try:
        shared = ValkeyStore(policy.store.url.reveal(), together=TOGETHER)
    except ValueError as error:
        raise PolicyError("policy", [Problem("store.url", str(error))]) from None
    ladder = LadderStore(
        shared,
        decision_timeout=policy.store.decision_timeout,
        when_down=policy.store.when_down,
        when_down_for=without,
        group=policy.service.name,
        gates=[
            Quota(name, settings, profile_named(settings.profile), now=_whenever).gate_key
            for name, settings in policy.vendors.items()
        ],
        replicas=policy.deploy.replicas,
        rng=rng,
        on_change=lambda state, why: telemetry.emit(Changed("store", state, why)),
    )
    return DenyCache(ladder)


def without_store(policy: Policy) -> dict[str, WhenDown]:
    """What single limits do without the store, by name; a vendor's contract says so itself."""
    ways = when_down_of(policy.fairness)
    for name, settings in policy.vendors.items():
        for model in ("", *settings.models):
            quota = Quota(name, settings, profile_named(settings.profile), model, now=_whenever)
            ways |= dict.fromkeys(quota.names, settings.when_down)
    return ways


def _whenever() -> datetime:
    """The names of limits and gates are the same on every day."""
    return datetime.fromtimestamp(0, UTC)


def bounds_of(policy: Policy) -> tuple[float | None, int | None]:
    """The lag and the memory at which the pod sheds load; the latter stays below what the container may
    have. `PolicyError` where memory is bounded and cannot be told."""
    settings = policy.admission
    memory = settings.memory_high
    if memory is not None:
        try:
            resident_memory()
        except OSError as error:
            why = f"this system does not tell a process its memory ({error})"
            raise PolicyError("policy", [Problem("admission.memory_high", why)]) from None
        container = container_memory()
        if container is not None and memory > BELOW_CONTAINER * container:
            memory = int(BELOW_CONTAINER * container)
            log.warning("admission.memory_high: %d bytes, the container has %d", memory, container)
    return settings.lag_high, memory


def pressure_of(policy: Policy, telemetry: Telemetry, now: Callable[[], datetime]) -> Pressure:
    """What the pod sheds load by."""
    lag, memory = bounds_of(policy)
    return Pressure(
        lag_high=lag,
        memory_high=memory,
        hour=lambda: int(now().timestamp() // 3600),
        telemetry=telemetry,
    )


def slots_of(policy: Policy, pressure: Pressure, rng: random.Random) -> Slots:
    """The pod's places, with a line where the policy has one."""
    settings = policy.admission
    return Slots(
        settings.max_in_flight,
        websockets=settings.websockets,
        patience=_patience(settings),
        pressure=pressure,
        rng=rng,
    )


def _patience(settings: AdmissionSettings) -> float:
    """Seconds a request may wait in line; a shadow keeps nobody waiting."""
    return 0.0 if settings.shadow else settings.queue_timeout


def readmit(
    settings: AdmissionSettings, *, slots: Slots, answers: Answers, gate: AdmissionGate | None
) -> None:
    """Have admission go by other settings from now on; `bounds_of` apart, which may be refused.

    gate  None while the application has not begun: it is built by the policy that then holds
    """
    answers.write_stall = settings.write_stall
    slots.change(settings.max_in_flight, websockets=settings.websockets, patience=_patience(settings))
    if settings.shadow:
        slots.let_in()
    if gate is not None:
        gate.hold_background, gate.shadow = settings.background_tasks == "hold", settings.shadow


def gate_of(
    policy: Policy,
    app: ASGIApp,
    *,
    slots: Slots,
    answers: Answers,
    identifier: Identifier,
    telemetry: Telemetry,
    reaper: Reaper,
    routes: Routes,
) -> AdmissionGate:
    """The pod's gate around an application."""
    settings = policy.admission
    header = settings.criticality_header
    return AdmissionGate(
        app,
        slots=slots,
        answers=answers,
        identifier=identifier,
        sla=policy.service.sla,
        deadline_header=policy.service.deadline_header or "",
        telemetry=telemetry,
        reaper=reaper,
        route_of=partial(_unrouted, routes),
        stated=None if header is None else StatedClass(header),
        hold_background=settings.background_tasks == "hold",
        shadow=settings.shadow,
    )


def _unrouted(routes: Routes, scope: Scope) -> str:
    """The template that a request which was answered before any router saw it was meant for."""
    if "router" in scope:  # mounts have changed the scope since, and whoever was outside has looked
        return ""
    try:
        matched = routes.find(scope)
    except Exception:  # of the application's own rules: nobody is to be told here
        return ""
    return "" if matched is None else matched.template


def ahead_of(
    policy: Policy,
    *,
    store: Store,
    fairness: Fairness,
    routes: Routes,
    identifier: Identifier,
    telemetry: Telemetry,
) -> Ahead:
    """Fairness's word ahead of the application; a store that remembers no refusals knows of none."""
    header = policy.admission.criticality_header
    return Ahead(
        known=store.known_nowait if isinstance(store, DenyCache) else lambda asks: None,
        fairness=fairness,
        routes=routes,
        identifier=identifier,
        telemetry=telemetry,
        inside=[] if header is None else [header.lower().encode()],
    )


def management_of(policy: Policy, pages: Pages) -> Management | None:
    """Probes and metrics on a port of their own; None where the policy names none."""
    place = policy.management
    return Management(pages, host=place.host or "0.0.0.0", port=place.port) if place.port else None


def rules_of(policy: Policy) -> Rules:
    """What the policy says of callers and their limits; `PolicyError` where a limit has no shape."""
    settings = policy.fairness
    callers = Callers(
        header=settings.identity_header,
        tiers={
            name: Rank(Criticality.of(tier.criticality), tier.weight)
            for name, tier in settings.tiers.items()
        },
        default_tier=settings.default_tier,
        keys={key: Caller(known.tier, known.tenant) for key, known in settings.keys.items()},
        trust=policy.service.trust,
        ttl=settings.cache_ttl,
        size=settings.cache_size,
    )
    try:
        return Rules(Limits(settings, service=policy.service.name), callers, settings.headers)
    except ValueError as error:
        raise PolicyError("policy", [Problem("fairness", str(error))]) from None


def identifier_of(callers: Callers, resolve: Resolver | None, telemetry: Telemetry) -> Identifier:
    """Who callers are, by the policy's table and the service's resolver."""

    def warn(sentence: str) -> None:
        log.warning("%s", sentence)
        telemetry.emit(Changed("resolver", "failing", sentence))

    return Identifier(callers, resolve=resolve, warn=warn)


def vendors_of(
    policy: Policy,
    *,
    store: Store,
    telemetry: Telemetry,
    reaper: Reaper,
    home: OneLoop,
    pod: str,
    rng: random.Random,
    now: Callable[[], datetime],
    transports: Mapping[str, httpx2.AsyncBaseTransport],
) -> dict[str, Vendor]:
    """The policy's vendors by name, over these transports where there are any."""
    return {
        name: Vendor(
            name,
            settings,
            profile_named(settings.profile),
            store=store,
            telemetry=telemetry,
            reaper=reaper,
            home=home,
            pod=pod,
            replicas=policy.deploy.replicas,
            rng=rng,
            now=now,
            transport=transports.get(name),
        )
        for name, settings in policy.vendors.items()
    }
