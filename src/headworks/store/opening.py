"""A store from a URL, with the ladder that keeps it answering."""

from __future__ import annotations

import random

from headworks.store.ladder import LadderStore, OnChange, WhenDown
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore


def open_store(
    url: str,
    *,
    replicas: int = 1,
    decision_timeout: float = 0.05,
    when_down: WhenDown = "share",
    rng: random.Random | None = None,
    on_change: OnChange | None = None,
) -> Store:
    """The store that a URL names; nothing is connected yet, and an absent server is no error.

    memory://                      this process only; what else is said here does not matter to it
    valkey://host:6379, redis://…  every process that names it (`topology` lists every form)

    replicas          how many processes share the limits, ≥ 1: each has its part of them, should the
                      server be away
    decision_timeout  seconds after which a decision is made without the server, default 0.05
    when_down         how: "share" (the default), "open" or "closed"
    rng               spreads the looks for a server that is away; default: seeded by the system
    on_change         told ("up" | "down", why) when the server goes or comes back

    Raises `ValueError` for a URL that is none of these; it never shows the password.
    """
    if url == "memory://":
        return MemoryStore()
    if replicas < 1:
        raise ValueError(f"replicas: {replicas}; this process at least is one")
    if not decision_timeout > 0:
        raise ValueError(f"decision_timeout: {decision_timeout} s; a decision takes time, 0.05 s say")
    return LadderStore(
        ValkeyStore(url),
        decision_timeout=decision_timeout,
        when_down=when_down,
        replicas=replicas,
        rng=rng or random.Random(),
        on_change=on_change,
    )
