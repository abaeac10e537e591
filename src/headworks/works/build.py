"""The parts of the works that take more than a constructor, built from the policy."""

from __future__ import annotations

import logging
import random
from typing import Final

from headworks.current import Criticality
from headworks.errors import PolicyError, Problem
from headworks.fairness import Limits, Rules
from headworks.identity import Caller, Callers, Identifier, Rank, Resolver
from headworks.policy.settings import Policy
from headworks.store.deny import DenyCache
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore
from headworks.telemetry import Changed, Telemetry

log = logging.getLogger("headworks")

LEAVING: Final = 0.3
"""The part of all pods that may be away for load at once."""
LEASE: Final = 10.0
"""Seconds after which the leave-permit of a pod that died is free again."""


class LeavePermit:
    """One of the places in which pods may be away for load: a lease in the shared store."""

    def __init__(self, store: Store, key: str, holder: str, limit: int) -> None:
        self._store, self._key, self._holder, self._limit = store, key, holder, limit

    async def hold(self) -> bool:
        held = await self._store.lease(self._key, holder=self._holder, limit=self._limit, ttl=LEASE)
        return held > 0

    async def give_back(self) -> None:
        await self._store.release(self._key, holder=self._holder)


def store_of(policy: Policy, telemetry: Telemetry, rng: random.Random) -> Store:
    """What the policy names, with a ladder to stand on when it is away; else this process's memory."""
    if policy.store is None:
        return MemoryStore()
    try:
        shared = ValkeyStore(policy.store.url.reveal())
    except ValueError as error:
        raise PolicyError("policy", [Problem("store.url", str(error))]) from None
    ladder = LadderStore(
        shared,
        decision_timeout=policy.store.decision_timeout,
        when_down=policy.store.when_down,
        replicas=policy.deploy.replicas,
        rng=rng,
        on_change=lambda state, why: telemetry.emit(Changed("store", state, why)),
    )
    return DenyCache(ladder)


def permit_of(policy: Policy, store: Store, pod: str) -> LeavePermit | None:
    """The pod's leave-permit; None where it is alone or the fleet too small to spare a pod."""
    places = int(LEAVING * policy.deploy.replicas)
    if policy.store is None or places < 1:
        return None
    return LeavePermit(store, f"{{health:{policy.service.name}}}:leave", pod, places)


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
