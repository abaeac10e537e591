"""A question whose limits lie on different slots of a cluster, which no one call can decide.

It is asked slot by slot: the slot of its gate first (of its first limit, where it has none), so that a
shut gate takes nothing; then the others, each whole, so that the verdict knows every limit. When one of
them refuses, what the others took is given back. So it never lets too much through; for as long as
giving back takes, it may let too little through. A booking ahead would need one send time on several
clocks: such a question is decided for now, whatever its horizon.

Settling later goes by the first slot's clock. What is given back on another slot may then not be found
in an exact window, and is forgotten, to the safe side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from headworks.limits.breaker import Ending
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Standing, StoreDown
from headworks.verdict import LimitState, Verdict

Part = tuple[Question, tuple[int, ...]]
"""A slot's part of a question, and which of its limits these are."""


def question_parts(
    question: Question,
    slot_of_ask: Callable[[Ask], int | None],
    slot_of_gate: Callable[[Gate], int | None],
) -> list[Part]:
    """One part per slot, the gate's or the first limit's first. Demand is reported with that one."""
    first = slot_of_gate(question.gate) if question.gate is not None else None
    places: dict[int | None, list[int]] = {first: []} if question.gate is not None else {}
    for i, ask in enumerate(question.asks):
        places.setdefault(slot_of_ask(ask), []).append(i)
    parts: list[Part] = []
    for indices in places.values():
        asks = tuple(question.asks[i] for i in indices)
        if parts:
            parts.append((Question(asks), tuple(indices)))
        else:
            gate, pod, demand = question.gate, question.pod, question.demand
            parts.append((Question(asks, 0.0, gate, pod, demand), tuple(indices)))
    return parts


def report_parts(
    report: Report,
    slot_of_correction: Callable[[Correction], int | None],
    slot_of_gate: Callable[[Gate], int | None],
) -> list[Report]:
    """One report per slot; the gate's last, whose standing is the answer."""
    gates = slot_of_gate(report.gate) if report.gate is not None else None
    places: dict[int | None, list[Correction]] = {}
    for correction in report.corrections:
        places.setdefault(slot_of_correction(correction), []).append(correction)
    if report.gate is None:
        return [Report(tuple(corrections)) for corrections in places.values()]
    own = tuple(places.pop(gates, ()))
    told = Report(
        own, report.gate, report.ending, report.slow, report.epoch, report.probe, report.cool_down
    )
    return [*(Report(tuple(corrections)) for corrections in places.values()), told]


async def ask_in_parts(
    parts: Sequence[Part],
    ask: Callable[[Question], Awaitable[Verdict]],
    report: Callable[[Report], Awaitable[Standing]],
) -> Verdict:
    """Ask the parts in turn, and give back what was taken when one refuses or fails."""
    verdicts: list[Verdict] = []
    try:
        for question, _ in parts:
            verdicts.append(await ask(question))
            if verdicts[-1].blocked is not None:
                return verdicts[-1]
    except StoreDown:
        await _give_back(parts, verdicts, report)
        raise
    if not all(verdict.allowed for verdict in verdicts):
        await _give_back(parts, verdicts, report)
    return _joined(parts, verdicts)


async def _give_back(
    parts: Sequence[Part], verdicts: Sequence[Verdict], report: Callable[[Report], Awaitable[Standing]]
) -> None:
    failed: StoreDown | None = None
    for (question, _), verdict in zip(parts, verdicts, strict=False):
        if not verdict.allowed:
            continue
        corrections = tuple(
            Correction(ask.key, ask.shape, -ask.cost, verdict.at_us) for ask in question.asks if ask.cost
        )
        probe = verdict.probe
        if not corrections and not probe:
            continue
        gate, ending = (question.gate, Ending.IGNORED) if probe else (None, None)
        try:
            await report(Report(corrections, gate, ending, epoch=verdict.epoch, probe=probe))
        except StoreDown as error:  # this slot stays charged; the others shall not
            failed = error
    if failed is not None:
        raise failed


def _joined(parts: Sequence[Part], verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict, its limits in the order of the question."""
    allowed = all(verdict.allowed for verdict in verdicts)
    states: dict[int, LimitState] = {}
    for (question, indices), verdict in zip(parts, verdicts, strict=True):
        for i, ask, state in zip(indices, question.asks, verdict.limits, strict=True):
            untaken = 0 if allowed or not verdict.allowed else ask.cost
            states[i] = state._replace(remaining=state.remaining + untaken)
    first = verdicts[0]
    return first._replace(
        allowed=allowed,
        retry_after=max(verdict.retry_after for verdict in verdicts),
        limits=tuple(states[i] for i in sorted(states)),
        at_us=first.at_us if allowed else 0,
        probe=first.probe if allowed else 0,
    )
