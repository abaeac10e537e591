"""The circuit breaker and cool-down of a whole fleet, as states and moves between them.

    closed     endings are counted over `window_us`, in ten sub-buckets
               → open      when calls ≥ min_calls and bad/calls ≥ failure_ratio
    open       nothing passes for `open_us`
               → half-open when that time is over
    half-open  `probes` calls pass, each under a numbered lease of `probe_us`
               → closed    after `probes` successes
               → open      on the first failed probe
    cool-down  beside all of them: nothing passes until `cool_until`, the latest anyone asked for
               → slow start  when that time is over
    slow start beside all of them: one call passes, two more for each that has come back; over when
               `SLOW_START` have. And one more `STEP_US` / n after the last of n: a vendor that wants
               none says so at once, which begins a new cool-down, but its answers may take minutes.
               Nothing heard of a pass for `probe_us`: it counts from one again. Coming back means any
               ending of the vendor's own that asks for no cool-down, be it a 500; our own refusal makes
               its pass free again

Units: integer microseconds on the store's clock. A call is bad when it failed, was overloaded, or was
slow. IGNORED is neither good nor bad and only frees its probe. A probe whose ending never arrives
frees its place when its lease is over, so no half-open state can hang.

The epoch is the fence: it rises when the breaker opens, when it closes, and when a cool-down starts or
grows. An ending that belongs to an older epoch counts for nothing. A breaker that is not known begins
at the epoch of its first millisecond, so epochs rise even where a store has forgotten everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from headworks.verdict import Blocked

SUB_BUCKETS = 10

SLOW_START = 16
"""Calls that have come back since a cool-down, until it is over for good."""

STEP_US = 1_000_000
"""How long after the first call of a slow start a second passes though the first has not come back."""

SOON_US = 250_000
"""When a gate that is in slow start is worth asking again, at the latest."""


class Ending(StrEnum):
    """How an attempt at a vendor ended; breaker and budgets learn from nothing else."""

    OK = "ok"
    """The vendor answered, even with a 400."""
    FAILED = "failed"
    """5xx, or a broken connection."""
    OVERLOADED = "overloaded"
    """429, or no answer in time."""
    IGNORED = "ignored"
    """Our own refusal, or the caller left: says nothing about the vendor."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens and how it closes again.

    failure_ratio  opens at this part of failed or slow calls, 0 < r ≤ 1
    min_calls      but never on fewer calls than this within the window, ≥ 1
    window_us      over which calls are counted
    open_us        how long it stays open before probes are let through
    probes         calls let through half-open, and successes needed to close, ≥ 1
    probe_us       a probe whose ending never arrives is given up after this long
    """

    failure_ratio: float
    min_calls: int
    window_us: int
    open_us: int
    probes: int
    probe_us: int


@dataclass(frozen=True, slots=True)
class BreakerState:
    """open_until: 0 closed, > now open, else half-open. counts: (sub-bucket, good, bad).

    probes: (number, its lease's end) of the probes under way; `numbered` is the last number given.
    In slow start, `passed` calls were let through, the last for `passed_at`, and `back` came back.
    """

    epoch: int = 0
    open_until: int = 0
    cool_until: int = 0
    successes: int = 0
    numbered: int = 0
    passed: int = 0
    passed_at: int = 0
    back: int = 0
    counts: tuple[tuple[int, int, int], ...] = ()
    probes: tuple[tuple[int, int], ...] = ()


def begun(now: int) -> BreakerState:
    """A breaker that nobody has heard of: closed, under an epoch later than any before."""
    return BreakerState(epoch=now // 1000)


Admission = tuple[BreakerState, Blocked | None, int, int]


def admit(state: BreakerState, rules: BreakerRules, now: int, sent: int | None = None) -> Admission:
    """May a call pass? The next state, why not, µs until asking again is worth it, probe number or 0.

    `sent` is when the call will be sent (default: now); a probe's lease begins then.
    """
    if state.cool_until > now:
        return state, Blocked.COOL_DOWN, state.cool_until - now, 0
    if not state.open_until:
        return _slowly(state, rules, now, sent)
    if state.open_until > now:
        return state, Blocked.OPEN, state.open_until - now, 0
    under_way = tuple(probe for probe in state.probes if probe[1] > now)
    if state.successes + len(under_way) >= rules.probes:
        wait = min((until for _, until in under_way), default=now) - now
        return state, Blocked.OPEN, max(wait, 1), 0
    number = state.numbered + 1
    until = (now if sent is None else sent) + rules.probe_us
    leased = replace(state, numbered=number, probes=(*under_way, (number, until)))
    return leased, None, 0, number


def _slowly(state: BreakerState, rules: BreakerRules, now: int, sent: int | None) -> Admission:
    """A call through a closed gate, counted where the gate is in slow start."""
    if not state.cool_until:
        return state, None, 0, 0
    if state.passed_at + rules.probe_us <= now:
        state = replace(state, passed=0, back=0)
    if state.passed > 2 * state.back and (due := state.passed_at + STEP_US // state.passed) > now:
        return state, Blocked.COOL_DOWN, min(due - now, SOON_US), 0
    return replace(state, passed=state.passed + 1, passed_at=now if sent is None else sent), None, 0, 0


def record(
    state: BreakerState,
    rules: BreakerRules,
    now: int,
    ending: Ending | None,
    slow: bool,
    epoch: int,
    probe: int,
    cool_down_us: int,
) -> BreakerState:
    """The state after a call sent under `epoch` ended so, and asked for a cool-down (0: did not)."""
    if ending is not None:
        if state.cool_until and cool_down_us <= 0 and epoch >= state.epoch:
            state = _came_back(state, ending)
        state = _ended(state, rules, now, ending, slow, epoch, probe)
    if cool_down_us > 0 and now + cool_down_us > state.cool_until:
        until, epoch = now + cool_down_us, state.epoch + 1
        state = replace(state, cool_until=until, epoch=epoch, passed=0, passed_at=0, back=0)
    return state


def _came_back(state: BreakerState, ending: Ending) -> BreakerState:
    if ending is Ending.IGNORED:
        return replace(state, passed=max(state.passed - 1, 0))
    if ending is Ending.OVERLOADED:
        return state
    if state.back + 1 >= SLOW_START:
        return replace(state, cool_until=0, passed=0, passed_at=0, back=0)
    return replace(state, back=state.back + 1)


def _ended(
    state: BreakerState,
    rules: BreakerRules,
    now: int,
    ending: Ending,
    slow: bool,
    epoch: int,
    probe: int,
) -> BreakerState:
    leased = any(number == probe and until > now for number, until in state.probes)
    if probe:
        state = replace(state, probes=tuple(p for p in state.probes if p[0] != probe and p[1] > now))
    if ending is Ending.IGNORED or epoch < state.epoch:
        return state
    bad = slow or ending is not Ending.OK
    if not state.open_until:
        return _counted(state, rules, now, bad)
    if not leased or state.open_until > now:
        return state
    if bad:
        return _opened(state, rules, now)
    if state.successes + 1 < rules.probes:
        return replace(state, successes=state.successes + 1)
    return replace(state, epoch=state.epoch + 1, open_until=0, successes=0, counts=(), probes=())


def _counted(state: BreakerState, rules: BreakerRules, now: int, bad: bool) -> BreakerState:
    current = now // _width(rules)
    counts = [entry for entry in state.counts if entry[0] > current - SUB_BUCKETS]
    if counts and counts[-1][0] == current:
        _, good, spoilt = counts.pop()
    else:
        good = spoilt = 0
    counts.append((current, good + (not bad), spoilt + bad))
    calls = sum(good + spoilt for _, good, spoilt in counts)
    failures = sum(spoilt for _, _, spoilt in counts)
    if calls >= rules.min_calls and failures >= rules.failure_ratio * calls:
        return _opened(state, rules, now)
    return replace(state, counts=tuple(counts))


def _opened(state: BreakerState, rules: BreakerRules, now: int) -> BreakerState:
    until = now + rules.open_us
    return replace(state, epoch=state.epoch + 1, open_until=until, successes=0, counts=(), probes=())


def _width(rules: BreakerRules) -> int:
    return max(1, -(-rules.window_us // SUB_BUCKETS))


def shut_until(state: BreakerState, now: int) -> int:
    """Until when surely nothing passes: `now` itself when something may."""
    return max(now, state.cool_until, state.open_until)


REMEMBERED_US = 3_600_000_000
"""A state, and with it the epoch, is kept this long after its last move has run out: one hour."""


def forgotten_at(state: BreakerState, rules: BreakerRules, now: int) -> int:
    """When the state may be dropped: it is as good as new then, and no call of its epochs is left."""
    moves = max(now + rules.window_us, state.cool_until, state.open_until, *(p[1] for p in state.probes))
    return moves + REMEMBERED_US
