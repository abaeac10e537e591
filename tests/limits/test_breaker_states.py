"""The breaker's life, move by move."""

from __future__ import annotations

from headworks.limits import breaker
from headworks.limits.breaker import BreakerRules, BreakerState, Ending
from headworks.verdict import Blocked

SECOND = 1_000_000
RULES = BreakerRules(0.5, 4, 10 * SECOND, 60 * SECOND, 2, 5 * SECOND)


def _tell(
    state: BreakerState,
    now: int,
    ending: Ending | None,
    *,
    probe: int = 0,
    slow: bool = False,
    epoch: int | None = None,
    cool_down: int = 0,
) -> BreakerState:
    epoch = state.epoch if epoch is None else epoch
    return breaker.record(state, RULES, now, ending, slow, epoch, probe, cool_down)


def _opened(now: int = 0) -> BreakerState:
    state = breaker.begun(now)
    for _ in range(4):
        state = _tell(state, now, Ending.FAILED)
    return state


def test_it_opens_at_the_ratio_but_never_below_the_minimum_of_calls() -> None:
    state = breaker.begun(0)
    for _ in range(3):
        state = _tell(state, 0, Ending.FAILED)
    assert not state.open_until
    state = _tell(state, 0, Ending.OK)
    assert state.open_until == 60 * SECOND
    assert breaker.admit(state, RULES, SECOND)[1:] == (Blocked.OPEN, 59 * SECOND, 0)


def test_slow_and_overloaded_calls_are_bad_and_ignored_ones_are_nothing() -> None:
    state = breaker.begun(0)
    for _ in range(50):
        state = _tell(state, 0, Ending.IGNORED, slow=True)
    assert state.counts == ()
    state = _tell(_tell(state, 0, Ending.OK, slow=True), 0, Ending.OVERLOADED)
    assert state.counts == ((0, 0, 2),)


def test_what_happened_before_the_window_is_forgotten() -> None:
    state = breaker.begun(0)
    for _ in range(3):
        state = _tell(state, 0, Ending.FAILED)
    state = _tell(state, 10 * SECOND, Ending.FAILED)
    assert not state.open_until
    assert state.counts == ((10, 0, 1),)


def test_half_open_lets_numbered_probes_through_and_closes_after_their_success() -> None:
    opened = _opened()
    now = opened.open_until
    state, blocked, _, first = breaker.admit(opened, RULES, now)
    state, _, _, second = breaker.admit(state, RULES, now)
    assert (blocked, first, second) == (None, 1, 2)
    assert breaker.admit(state, RULES, now)[1:] == (Blocked.OPEN, 5 * SECOND, 0)
    state = _tell(_tell(state, now, Ending.OK, probe=1), now, Ending.OK, probe=2)
    assert (state.open_until, state.epoch) == (0, opened.epoch + 1)
    assert breaker.admit(state, RULES, now) == (state, None, 0, 0)


def test_a_failed_probe_opens_it_again() -> None:
    opened = _opened()
    now = opened.open_until
    state, *_ = breaker.admit(opened, RULES, now)
    state = _tell(state, now, Ending.FAILED, probe=1)
    assert (state.open_until, state.epoch) == (now + 60 * SECOND, opened.epoch + 1)


def test_a_probe_that_never_ends_frees_its_place_when_its_lease_is_over() -> None:
    """Peers' half-open states hang for ever on a lost probe."""
    state = _opened()
    now = state.open_until
    for _ in range(2):
        state, *_ = breaker.admit(state, RULES, now)
    assert breaker.admit(state, RULES, now + 5 * SECOND - 1)[1] is Blocked.OPEN
    state, blocked, _, number = breaker.admit(state, RULES, now + 5 * SECOND)
    assert (blocked, number) == (None, 3)
    late = _tell(state, now + 5 * SECOND, Ending.FAILED, probe=1)
    assert late == state, "an ending behind its lease moves nothing"


def test_a_cancelled_probe_frees_its_place_and_proves_nothing() -> None:
    """Polly closes on a cancelled probe."""
    state = _opened()
    now = state.open_until
    state, *_ = breaker.admit(state, RULES, now)
    state = _tell(state, now, Ending.IGNORED, probe=1)
    assert state.open_until
    assert (state.probes, state.successes) == ((), 0)


def test_a_probe_booked_ahead_has_its_lease_from_its_send_time() -> None:
    state = _opened()
    now = state.open_until
    state, *_ = breaker.admit(state, RULES, now, now + 3 * SECOND)
    assert state.probes == ((1, now + 8 * SECOND),)


def test_endings_of_an_older_epoch_count_for_nothing() -> None:
    """Calls sent before the breaker opened end after it has closed; they are old news."""
    opened = _opened()
    now = opened.open_until
    state, *_ = breaker.admit(opened, RULES, now)
    for ending in Ending:
        assert _tell(state, now, ending, epoch=opened.epoch - 1) == state
    freed = _tell(state, now, Ending.OK, probe=1, epoch=opened.epoch - 1)
    assert (freed.probes, freed.successes) == ((), 0)
    closed = breaker.begun(now)
    for _ in range(9):
        assert _tell(closed, now, Ending.FAILED, epoch=closed.epoch - 1) == closed


def test_the_longest_cool_down_stands_and_each_growth_raises_the_epoch() -> None:
    state = breaker.begun(0)
    longer = _tell(state, 0, Ending.OVERLOADED, cool_down=5 * SECOND)
    assert breaker.admit(longer, RULES, SECOND)[1:] == (Blocked.COOL_DOWN, 4 * SECOND, 0)
    shorter = _tell(longer, SECOND, None, cool_down=2 * SECOND)
    assert shorter == longer
    assert longer.epoch == state.epoch + 1
    assert breaker.admit(longer, RULES, 5 * SECOND)[1] is None


def test_epochs_rise_even_when_the_state_was_lost() -> None:
    opened = _opened(now=1_764_000_000 * SECOND)
    assert breaker.begun(1_764_000_001 * SECOND).epoch > opened.epoch


def test_after_a_cool_down_one_passes_and_two_more_for_each_that_comes_back() -> None:
    state = _tell(breaker.begun(0), 0, Ending.OVERLOADED, cool_down=SECOND)
    assert breaker.admit(state, RULES, SECOND - 1)[1:3] == (Blocked.COOL_DOWN, 1)
    allowed = []
    for _ in range(3):
        passed = 0
        while (moved := breaker.admit(state, RULES, SECOND))[1] is None:
            state, passed = moved[0], passed + 1
        allowed.append(passed)
        for _ in range(passed):
            state = _tell(state, SECOND, Ending.OK)
    assert allowed == [1, 2, 4]
    for _ in range(breaker.SLOW_START):
        state = _tell(state, SECOND, Ending.FAILED, epoch=state.epoch)
    assert not state.cool_until, "the vendor lets calls in again, whatever it makes of them"


def test_a_slow_start_hangs_on_no_lost_call() -> None:
    state = _tell(breaker.begun(0), 0, Ending.OVERLOADED, cool_down=SECOND)
    state = breaker.admit(state, RULES, SECOND)[0]
    assert breaker.admit(state, RULES, 2 * SECOND - 1)[1:3] == (Blocked.COOL_DOWN, 1)
    freed = _tell(state, SECOND, Ending.IGNORED)
    assert breaker.admit(freed, RULES, SECOND)[1] is None
    assert breaker.admit(state, RULES, SECOND + RULES.probe_us)[0].passed == 1, "from one again"


def test_a_slow_start_waits_for_no_long_answer() -> None:
    """A no comes at once; nobody has said it, though none has ended: ever more pass, 1/n s apart."""
    state = _tell(breaker.begun(0), 0, Ending.OVERLOADED, cool_down=SECOND)
    passed = []
    for now in range(SECOND, 5 * SECOND, 10_000):
        if (moved := breaker.admit(state, RULES, now))[1] is None:
            state = moved[0]
            passed.append((now - SECOND) / SECOND)
    assert passed[:5] == [0.0, 1.0, 1.5, 1.84, 2.09]
    assert sum(at < 3.0 for at in passed) in range(10, 13)
    assert sum(3.0 <= at < 4.0 for at in passed) >= 15


def test_endings_of_before_a_cool_down_are_no_sign_that_it_is_over() -> None:
    state = _tell(breaker.begun(0), 0, Ending.OVERLOADED, cool_down=SECOND)
    for _ in range(100):
        state = _tell(state, SECOND, Ending.OK, epoch=0)
    assert state.cool_until
    assert state.back == 0
