"""Ports for what a test starts in a process of its own."""

from __future__ import annotations

import random

from headworks.local.probe import free_ports

_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on, that the system gives to nobody, and that was not given before: what
    comes back on it, or comes up late, finds it free."""
    while True:
        (port,) = free_ports(host, 1, random.Random())
        if port not in _given:
            _given.add(port)
            return port
