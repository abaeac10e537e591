"""Questions and reports as decide.lua reads them, and its numbers as verdicts.

This is what every decision pays for in Python, so what can be made once is made once: a shape's part
of a form is packed when the shape is first met, and kept as long as the object is in use.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import EXACT_INTEGERS, NEVER_US, Bucket, Shape
from headworks.store.batch import Argument
from headworks.store.protocol import Question, Report, Standing
from headworks.verdict import NEVER, Blocked, LimitState, Verdict

PREFIX = "hw1:"
SECOND = 1_000_000
KNOWN = 4096
"""Shapes, each with a cost, whose packed form is kept."""

_BLOCKED = {1: Blocked.OPEN, 2: Blocked.COOL_DOWN}
_ENDINGS = {None: 0, Ending.OK: 1, Ending.FAILED: 4, Ending.OVERLOADED: 2, Ending.IGNORED: 3}
_PLAIN = struct.pack("<cBBB", b"q", 0, 0, 0)

_new = tuple.__new__
"""Fills a named tuple in a third of the time its own constructor takes."""

_Known = tuple[bytes, str, Shape]
"""A limit's part of a form, the prefix of its key, and the shape, held so that its id stays its own."""


def key_of(shape: Shape, key: str) -> str:
    """The name in the store of a limit's key."""
    return f"{PREFIX}b:{key}" if isinstance(shape, Bucket) else f"{PREFIX}w:{key}"


def gate_key(key: str) -> str:
    return f"{PREFIX}g2:{key}"


def _packed(shape: Shape, cost: int) -> bytes:
    cost = min(cost, EXACT_INTEGERS)  # more than any limit, as doubles have it
    if isinstance(shape, Bucket):
        return struct.pack("<cdddd", b"b", cost, shape.pace_us, shape.pace_per, shape.burst)
    return struct.pack("<cdddd", b"w", cost, shape.limit, shape.period_us, shape.grain_us)


def _rules(rules: BreakerRules) -> bytes:
    return struct.pack(
        "<dddddd",
        rules.failure_ratio,
        rules.min_calls,
        rules.window_us,
        rules.open_us,
        rules.probes,
        rules.probe_us,
    )


def keys_of(item: Question | Report) -> list[str]:
    """The names in the store of all that a question or a report touches."""
    parts = item.corrections if isinstance(item, Report) else item.asks
    keys = [key_of(part.shape, part.key) for part in parts]
    return keys if item.gate is None else [*keys, gate_key(item.gate.key)]


class Forms:
    """Writes questions, and remembers the parts of them that come again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Known] = {}

    def question(self, question: Question, keys: list[str], arguments: list[Argument]) -> None:
        """Append a question to a call's keys and arguments."""
        asks, horizon, gate, pod, demand = question
        form, demanded, books = _PLAIN, 0, horizon > 0
        if books or gate is not None or demand > 0:
            demanded = round(demand * 1000) if gate is not None or asks else 0
            form = struct.pack("<cBBB", b"q", gate is not None, books, demanded > 0)
            if gate is not None:
                keys.append(gate_key(gate.key))
                form += _rules(gate.rules)
            if demanded > 0:
                keys.append(f"{PREFIX}d:{gate.key if gate is not None else asks[0].key}")
        for _, key, shape, cost in asks:
            known = self._known.get((id(shape), cost)) or self._meet(shape, cost)
            form += known[0]
            name = known[1] + key
            if not name.isascii():
                name.encode()  # half a surrogate fails here, alone, and not later with those beside it
            keys.append(name)
        arguments.append(form)
        if books:
            arguments.append(round(horizon * SECOND))
        if demanded > 0:
            arguments += (demanded, pod)

    def _meet(self, shape: Shape, cost: int) -> _Known:
        if len(self._known) >= KNOWN:
            self._known.clear()
        known = self._known[id(shape), cost] = (_packed(shape, cost), key_of(shape, ""), shape)
        return known


def write_report(report: Report, keys: list[str], arguments: list[Argument]) -> None:
    """Append a report to a call's keys and arguments."""
    gate, form = report.gate, struct.pack("<cBBB", b"r", report.gate is not None, 0, 0)
    if gate is not None:
        form += _rules(gate.rules)
    form += b"".join(_packed(c.shape, 0) for c in report.corrections)
    arguments.append(form)
    for c in report.corrections:
        keys.append(key_of(c.shape, c.key))
        arguments += (c.units, c.at_us)
    if gate is not None:
        keys.append(gate_key(gate.key))
        ending = _ENDINGS[report.ending]
        if report.slow and report.ending is Ending.OK:
            ending = _ENDINGS[Ending.FAILED]
        arguments += (ending, report.epoch, report.probe, round(report.cool_down * SECOND))


def verdict(question: Question, numbers: Sequence[int], i: int) -> tuple[Verdict, int]:
    """The verdict on a question in the numbers from `i`, and where the next one's begin."""
    asks, horizon, gate, _, demand = question
    if gate is not None or horizon > 0 or demand > 0 or not asks:
        return _verdict(question, numbers, i)
    limits, longest = [], 0.0
    for name, _, shape, _ in asks:  # limits alone that are asked about now, as nearly all are
        wait, again = numbers[i + 2], 0.0
        if wait:
            again = NEVER if wait == NEVER_US else wait / SECOND
            if again > longest:
                longest = again
        reset = numbers[i + 1] / SECOND
        state = (name, shape.limit, shape.period, not wait, numbers[i], reset, again)
        limits.append(_new(LimitState, state))
        i += 3
    at = 0 if longest else numbers[0]
    plain = (not longest, longest, tuple(limits), 0.0, at, 0, 0, None, 0.0, False)
    return _new(Verdict, plain), i


def _verdict(question: Question, numbers: Sequence[int], i: int) -> tuple[Verdict, int]:
    asks, horizon, gate, _, demand = question
    blocked = shut_for = epoch = probe = 0
    if gate is not None:
        blocked, shut_for, epoch, probe = numbers[i : i + 4]
        i += 4
    total = 0.0
    if demand > 0 and (gate is not None or asks) and round(demand * 1000) > 0:
        total = numbers[i] / 1000
        i += 1
    after = i + 3 * len(asks)
    if blocked:
        why = _BLOCKED[blocked]
        return Verdict(False, shut_for / SECOND, blocked=why, epoch=epoch, demand=total), after
    horizon_us = round(horizon * SECOND) if horizon > 0 else 0
    waits = numbers[i + 2 : after : 3]
    longest = max(waits, default=0)
    never = NEVER_US in waits
    allowed = not never and longest <= horizon_us
    limits = []
    for (name, _, shape, _), wait in zip(asks, waits, strict=True):
        again = 0.0 if allowed else NEVER if wait == NEVER_US else wait / SECOND
        fits = NEVER_US < wait <= horizon_us
        window = shape.period_us / SECOND
        state = (name, shape.limit, window, fits, numbers[i], numbers[i + 1] / SECOND, again)
        limits.append(_new(LimitState, state))
        i += 3
    if allowed:
        at, wait_s = numbers[0] + longest, longest / SECOND
        return Verdict(True, 0.0, tuple(limits), wait_s, at, epoch, probe, demand=total), after
    again = NEVER if never else (longest - horizon_us) / SECOND
    return Verdict(False, again, tuple(limits), epoch=epoch, demand=total), after


def standing(report: Report, numbers: Sequence[int], i: int) -> tuple[Standing, int]:
    """The standing after a report in the numbers from `i`, and where the next one's begin."""
    if report.gate is None:
        return Standing(), i
    return Standing(numbers[i], numbers[i + 1] / SECOND), i + 2
