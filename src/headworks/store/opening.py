"""A store from a URL, with the ladder that keeps it answering."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import get_args

from headworks.store.ladder import LadderStore, OnChange, WhenDown
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore


def open_store(
    url: str,
    *,
    group: str = "all",
    replicas: int = 1,
    decision_timeout: float = 0.05,
    when_down: WhenDown = "share",
    when_down_for: Mapping[str, WhenDown] | None = None,
    rng: random.Random | None = None,
    on_change: OnChange | None = None,
) -> Store:
    """The store that a URL names; nothing is connected yet, and an absent server is no error.

    memory://                      this process only; what else is said here does not matter to it
    valkey://host:6379, redis://…  every process that names it (`topology` lists every form)

    group             the processes that ask about the same limits: they name the same group, by
                      default all who open this server, and are counted while it is there. Should it
                      go, each has its part of every limit
    replicas          how many of them there are as long as none was counted, ≥ 1
    decision_timeout  seconds after which a decision is made without the server, default 0.05
    when_down         how: "share" (the default), "open" or "closed"
    when_down_for     the same for single limits, by name
    rng               spreads looks and heartbeats over time; default: seeded by the system
    on_change         told ("up" | "down", why) when the server goes or comes back

    Raises `ValueError` for a URL that is none of these; it never shows the password.
    """
    if url == "memory://":
        return MemoryStore()
    if not group:
        raise ValueError("group: '' is empty; name those that share the limits, such as \"search\"")
    if replicas < 1:
        raise ValueError(f"replicas: {replicas}; this process at least is one")
    if not decision_timeout > 0:
        raise ValueError(f"decision_timeout: {decision_timeout} s; a decision takes time, 0.05 s say")
    named = {f"when_down_for[{name!r}]": way for name, way in (when_down_for or {}).items()}
    for field, way in {"when_down": when_down, **named}.items():
        if way not in get_args(WhenDown):
            raise ValueError(f"{field}: {way!r} is none of {', '.join(get_args(WhenDown))}")
    return LadderStore(
        ValkeyStore(url),
        decision_timeout=decision_timeout,
        when_down=when_down,
        when_down_for=when_down_for,
        group=group,
        replicas=replicas,
        rng=rng or random.Random(),
        on_change=on_change,
    )
