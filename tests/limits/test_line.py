"""The line: strict classes, fairness between tenants inside them, leaving costs nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headworks.current import Criticality
from headworks.limits.line import CREDIT, REMEMBERED, Ahead, Line, Waiter

DEFAULT = Criticality.DEFAULT


def stand(
    line: Line[str], name: str, *, units: int = 1, weight: int = 1, criticality: Criticality = DEFAULT
) -> Waiter[str]:
    waiter = Waiter(name, name.split(":")[0], criticality, units, weight)
    line.join(waiter)
    return waiter


def order(line: Line[str]) -> list[str]:
    served = []
    while (waiter := line.pop()) is not None:
        served.append(waiter.payload)
    return served


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    line: Line[str] = Line()
    for number in range(5):
        stand(line, f"a:{number}")
    assert order(line) == [f"a:{number}" for number in range(5)]


def test_a_polite_tenant_waits_one_round_behind_a_flooder() -> None:
    line: Line[str] = Line()
    for number in range(100):
        stand(line, f"flooder:{number}")
    stand(line, "polite:0")
    assert "polite:0" in order(line)[:2]


def test_a_tenant_of_weight_two_is_served_twice_as_often() -> None:
    line: Line[str] = Line()
    for number in range(30):
        stand(line, f"heavy:{number}", weight=2)
        stand(line, f"light:{number}")
    first = order(line)[:30]
    assert sum(name.startswith("heavy") for name in first) == 20


def test_cost_is_weighed_not_counted() -> None:
    line: Line[str] = Line()
    for number in range(20):
        stand(line, f"big:{number}", units=1000)
        stand(line, f"small:{number}", units=100)
    first = order(line)[:11]
    assert sum(name.startswith("small") for name in first) == 10


def test_a_higher_class_always_goes_first() -> None:
    line: Line[str] = Line()
    stand(line, "a:batch", criticality=Criticality.BACKGROUND)
    stand(line, "b:user", criticality=Criticality.DEFAULT)
    stand(line, "c:now", criticality=Criticality.CRITICAL)
    assert order(line) == ["c:now", "b:user", "a:batch"]


def test_ahead_tells_a_newcomer_one_round_and_the_flooder_its_whole_backlog() -> None:
    line: Line[str] = Line()
    for number in range(100):
        stand(line, f"flooder:{number}")
    assert line.ahead("newcomer", DEFAULT).now <= 2
    assert line.ahead("flooder", DEFAULT).now == 100


def known_and_flooded() -> Line[str]:
    """Seventy calls of a flooder, which has been served alone since another tenant had its only one."""
    line: Line[str] = Line()
    for number in range(100):
        stand(line, f"flooder:{number}")
    stand(line, "known:0")
    while len(line) > 70:
        line.pop()
    return line


def test_who_asked_for_nothing_for_a_while_catches_up_so_many_calls_and_no_more() -> None:
    """The flooder has been served alone meanwhile: it gave nothing up by waiting now."""
    line = known_and_flooded()
    for number in range(20):
        stand(line, f"known:{number}")
    first = order(line)[:30]
    assert all(name.startswith("known") for name in first[:CREDIT])
    assert sum(name.startswith("known") for name in first[CREDIT:]) == (30 - CREDIT) / 2


def test_a_call_without_credit_catches_up_nothing() -> None:
    """Its tenant is served in turn from now on, and is told so before it joins."""
    line = known_and_flooded()
    assert line.ahead("known", DEFAULT, credit=0).now == 1
    assert line.ahead("known", DEFAULT).now == 0
    for number in range(20):
        waiter = Waiter(f"known:{number}", "known", DEFAULT, credit=0)
        line.join(waiter)
    assert sum(name.startswith("known") for name in order(line)[:20]) == 10


def test_a_newcomer_catches_up_nothing() -> None:
    """Or whoever comes under ever new names would go before everybody else."""
    line: Line[str] = Line()
    for number in range(100):
        stand(line, f"stays:{number}")
    while len(line) > 70:
        line.pop()
    for number in range(20):
        stand(line, f"new:{number}")
    assert sum(name.startswith("new") for name in order(line)[:20]) == 10


def test_a_call_that_left_unserved_costs_its_tenant_no_turn() -> None:
    line: Line[str] = Line()
    for number in range(10):
        stand(line, f"a:{number}")
    for number in range(10):
        line.leave(stand(line, f"b:gone-{number}"))
    stand(line, "b:0")
    assert "b:0" in order(line)[:2]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=80),
    st.sampled_from("abcdef"),
)
def test_ahead_is_who_will_be_served_before(history: list[tuple[str, bool, bool]], tenant: str) -> None:
    """Exactly, where costs are alike and nobody has left from between others of its tenant."""
    line: Line[str] = Line()
    last: dict[str, Waiter[str]] = {}
    for name, serves, leaves in history:
        if leaves and name in last:
            line.leave(last[name])  # its latest
        else:
            last[name] = stand(line, f"{name}:")
        if serves:
            line.pop()
    foreseen = line.ahead(tenant, DEFAULT).now
    mine = stand(line, f"{tenant}:mine")
    found = [line.nth(n) for n in range(len(line))].index(mine)
    assert foreseen == found


def test_who_may_still_overtake_is_who_has_fewer_in_line() -> None:
    """A flooder's hundredth call may be overtaken by 99 of somebody who has one there."""
    line: Line[str] = Line()
    for number in range(99):
        stand(line, f"flooder:{number}")
    stand(line, "polite:0")
    assert line.ahead("flooder", DEFAULT) == Ahead(100, 99)
    assert line.ahead("polite", DEFAULT) == Ahead(3, 0)


def test_ahead_of_very_many_tenants_is_about_right() -> None:
    line: Line[str] = Line()
    for number in range(400):
        for call in range(3):
            stand(line, f"t{number}:{call}")
    for _ in range(400):
        line.pop()
    for tenant, about in (("t7", 800), ("newcomer", 400)):
        assert abs(line.ahead(tenant, DEFAULT).now - about) <= 80


def test_state_of_tenants_that_left_does_not_pile_up() -> None:
    line: Line[str] = Line()
    stand(line, "stays:0", units=10**9)
    for number in range(10_000):
        line.leave(stand(line, f"t{number}:0"))
        stand(line, f"u{number}:0")
        line.pop()
    queue = line._classes[DEFAULT]
    assert len(queue.tenants) < 2 * REMEMBERED
    assert len(queue.heap) < 10


joins = st.tuples(
    st.just("join"), st.sampled_from("abc"), st.integers(1, 50), st.sampled_from(Criticality)
)
leaves = st.tuples(st.just("leave"), st.integers(0, 30))
pops = st.tuples(st.just("pop"))


@given(st.lists(st.one_of(joins, leaves, pops), max_size=60))
def test_whoever_joined_is_served_or_left_exactly_once(history: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever the order of joining, leaving and serving, nobody is lost and nobody served twice."""
    line: Line[str] = Line()
    joined: list[Waiter[str]] = []
    gone: list[Waiter[str]] = []
    for step in history:
        if step[0] == "join":
            waiter = Waiter(f"{step[1]}:{len(joined)}", step[1], step[3], step[2])
            line.join(waiter)
            joined.append(waiter)
        elif step[0] == "leave" and step[1] < len(joined):
            if joined[step[1]].standing:
                gone.append(joined[step[1]])
            line.leave(joined[step[1]])
        elif step[0] == "pop":
            expected = line.nth(0)
            waiter = line.pop()
            assert waiter is expected
            if waiter is not None:
                gone.append(waiter)
        assert len(line) == len(joined) - len(gone)
        assert {id(w) for w in line.waiters()} == {id(w) for w in joined if w.standing}
    upcoming = [line.nth(n) for n in range(len(line) + 1)]
    assert upcoming.pop() is None
    served = [line.pop() for _ in upcoming]
    assert [id(w) for w in served] == [id(w) for w in upcoming]
    assert line.head() is None
