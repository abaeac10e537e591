"""The parts of the works that take more than a constructor, built from the policy."""

from __future__ import annotations

import logging
import random

from headworks.current import Criticality
from headworks.errors import PolicyError, Problem
from headworks.fairness.limits import when_down_of
from headworks.health import Management, Pages
from headworks.identity import Identifier, Rank, Resolver
from headworks.policy.profiles import profile_named
from headworks.policy.settings import Policy, WhenDown
from headworks.store.deny import DenyCache
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore
from headworks.telemetry import Changed, Telemetry
from headworks.vendor.quota import Quota

log = logging.getLogger("headworks")


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
        when_down_for=_when_down_for(policy, policy.store.when_down),
        group=policy.service.name,
        replicas=policy.deploy.replicas,
        rng=rng,
        on_change=lambda state, why: telemetry.emit(Changed("store", state, why)),
    )
    return DenyCache(ladder)


def _when_down_for(policy: Policy, otherwise: WhenDown) -> dict[str, WhenDown]:
    """What single limits do without the store; a vendor's contract is never left open."""
    ways = when_down_of(policy.fairness)
    for name, settings in policy.vendors.items():
        way = settings.when_down or ("share" if otherwise == "open" else otherwise)
        for model in ("", *settings.models):
            quota = Quota(name, settings, profile_named(settings.profile), model)
            ways |= dict.fromkeys(quota.names, way)
    return ways


def management_of(policy: Policy, pages: Pages) -> Management | None:
    """Probes and metrics on a port of their own; None where the policy names none."""
    place = policy.management
    return Management(pages, host=place.host, port=place.port) if place.port else None


def identifier_of(policy: Policy, resolve: Resolver | None, telemetry: Telemetry) -> Identifier:
    """Who callers are, by the policy's table and the service's resolver."""
    settings = policy.fairness

    def warn(sentence: str) -> None:
        log.warning("%s", sentence)
        telemetry.emit(Changed("resolver", "failing", sentence))

    return Identifier(
        header=settings.identity_header,
        tiers={
            name: Rank(Criticality.of(tier.criticality), tier.weight)
            for name, tier in settings.tiers.items()
        },
        default_tier=settings.default_tier,
        keys=settings.keys,
        resolve=resolve,
        trust=policy.service.trust,
        ttl=settings.cache_ttl,
        size=settings.cache_size,
        warn=warn,
    )
