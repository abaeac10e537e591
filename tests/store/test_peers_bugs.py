"""What users of other limiters for Python have run into, each held against this one.

What stands in `ELSEWHERE` has its test where it belongs; a test here looks that it is still there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headworks.limits.shapes import Bucket, Window
from headworks.store import Limiter, Limits, Verdict
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question, Store

TESTS = Path(__file__).parents[1]

ELSEWHERE = {
    # slowapi
    "routes of an included router were never limited": (
        "test_works_limits.py::test_included_routers_are_limited_apart_and_for_what_they_are"
    ),
    "a frozen server stopped the event loop, then every request was a 500": (
        "store/test_outage.py::test_a_while_without_a_server"
    ),
    "an error of the store went to the handler of refusals, which broke on it": (
        "test_works_with_a_store.py::test_a_store_that_is_away_at_the_start_or_dies_is_no_500"
    ),
    "the last route that matched was looked up, not the first, and its limits were another's": (
        "fairness/test_fairness_routes.py::test_fastapi_routes_are_found_under_their_full_path"
    ),
    "every route was looked at for every request": (
        "fairness/test_fairness_routes.py::test_of_many_routes_only_those_that_may_match_are_looked_at"
    ),
    "an endpoint that returns a plain value was a 500 once it had headers to carry": (
        "test_works_limits.py::test_a_served_answer_tells_the_same_limits"
    ),
    "limits were told twice in one answer": (
        "test_works_limits.py::test_an_application_that_tells_limits_itself_does_not_double_them"
    ),
    "the request was kept on an object that threads share": (
        "test_works_limits.py::test_callers_of_different_tiers_at_the_same_time_are_each_told_their_own"
    ),
    "the start of a response was sent again with every chunk": (
        "test_works_answers.py::test_a_stream_carries_its_limits_once_and_an_error_in_it_is_not_answered_twice"
    ),
    "every concrete URL had a limit of its own": (
        "test_works_limits.py::test_included_routers_are_limited_apart_and_for_what_they_are"
    ),
    "answers that were let through said when to come back": (
        "test_works_limits.py::test_a_served_answer_tells_the_same_limits"
    ),
    "the last route of a path said whether it was exempt, the first one answered": (
        "test_works_fairness.py::test_the_first_route_that_matches_is_the_one_that_counts"
    ),
    "an endpoint that returned a dict was a 500, other answers had their headers twice": (
        "test_works_fairness.py::test_every_answer_tells_its_limits_exactly_once"
    ),
    "websockets had no limits": "test_works_fairness.py::test_a_websocket_is_asked_when_it_connects",
    # fastapi-limiter
    "all users shared one limit": "store/test_conformance.py::test_two_users_do_not_share_a_limit",
    "every worker counted for itself": (
        "test_works_with_a_store.py::test_two_pods_share_one_limit_and_two_services_do_not"
    ),
    "an outage of the server held requests up for minutes": (
        "store/test_ladder.py::test_a_slow_store_costs_the_decision_timeout_and_no_more"
    ),
    "a refusal did not say when to come back": (
        "test_works_limits.py::test_the_eleventh_request_is_refused_and_the_next_user_served"
    ),
    "every limited route was a 500 once a router was included": (
        "test_works_fairness.py::test_including_a_router_breaks_no_limited_route"
    ),
    "the leftmost X-Forwarded-For was believed": (
        "ground/test_address.py::test_the_client_is_the_first_untrusted_hop_from_our_side"
    ),
    # pyrate-limiter
    "a flushed script was an error until the next start": (
        "store/test_valkey_store.py::test_a_flushed_script_is_loaded_again_by_itself"
    ),
    "a failover was an incident, as the new primary had no script": (
        "store/test_topology.py::test_after_a_failover_the_new_primary_decides"
    ),
    "keys lived for ever": "store/test_valkey_store.py::test_every_key_lives_for_a_limited_time",
    "the clock was each pod's own": (
        "store/test_outage.py::test_pods_an_hour_apart_get_the_same_verdicts"
    ),
    # limits
    "an earlier limit was burnt when a later one refused": (
        "store/test_conformance.py::test_all_limits_consume_or_none_does"
    ),
    "another kind of limit under the same key was an error until it had expired": (
        "store/test_valkey_store.py::test_switching_the_kind_of_limit_under_one_key_is_no_error"
    ),
    "a window grew with its limit": "limits/test_window_shape.py::test_the_number_of_entries_is_bounded",
    "twice the limit passed at a window's edge": (
        "store/test_conformance.py::test_nobody_gets_twice_the_limit_around_an_edge"
    ),
    "more passed than the limit when many asked at once": (
        "store/test_conformance.py::test_a_race_of_200_for_100_admits_exactly_100"
    ),
    # throttled-py
    "routes of two prefixes shared one limit": (
        "test_works_limits.py::test_included_routers_are_limited_apart_and_for_what_they_are"
    ),
    "an endpoint in a thread could not be limited": (
        "test_works_limits.py::test_an_endpoint_in_a_thread_is_limited_as_any_other"
    ),
    # for other languages
    "bucket4j: a batch took more than its members": (
        "store/test_batching.py::test_a_batch_decides_as_if_its_members_had_come_one_by_one"
    ),
    "bucket4j: four hundred at once on one key timed out": (
        "store/test_valkey_store.py::test_far_more_calls_than_connections_all_get_their_answer"
    ),
    "envoy: a timer that gathers questions made an idle service slower": (
        "store/test_batching.py::test_a_lone_question_is_sent_in_its_own_tick_without_a_timer"
    ),
    "upstash: one large refused cost blocked the small ones, too": (
        "store/test_deny.py::test_the_smallest_refused_cost_stands_for_all_above_it_only"
    ),
    "upstash: what was given back was still refused from memory": (
        "store/test_deny.py::test_forgetting_and_giving_back_are_heard"
    ),
    "gubernator: two a millisecond divided to nothing": (
        "store/test_peers_tables.py::test_asking_for_more_than_there_is_takes_nothing"
    ),
    "keys of users became labels of metrics": (
        "test_works_fairness.py::test_no_key_reaches_store_log_or_metric"
    ),
    "labels grew with what callers invented": (
        "test_works_fuzz.py::test_ten_thousand_invented_callers_are_one_caller_and_few_labels"
    ),
    "limits of a route could not be taken together": (
        "test_works_fairness.py::test_an_endpoint_has_limits_of_every_scope_at_once"
    ),
}


@pytest.mark.parametrize("bug", ELSEWHERE)
def test_what_is_tested_elsewhere_is_still_tested_there(bug: str) -> None:
    file, name = ELSEWHERE[bug].split("::")
    assert f"def {name}(" in (TESTS / file).read_text()


def test_no_middleware_of_ours_is_the_kind_that_breaks_streams() -> None:
    """slowapi, throttled-py: `BaseHTTPMiddleware` runs the application in a task of its own."""
    files = [*(TESTS.parent / "src").rglob("*.py")]
    assert files
    assert not [file for file in files if "BaseHTTPMiddleware" in file.read_text()]


async def _admitted(store: Store, shape: Bucket | Window, times: int) -> int:
    asked = [await store.ask(Question((Ask("limit", "k", shape),))) for _ in range(times)]
    return sum(verdict.allowed for verdict in asked)


@pytest.mark.real
async def test_a_burst_below_half_a_seconds_rate_is_a_limit_too(opener: Any, clock: Any) -> None:
    """throttled-py: "100/s burst 20" lived for ⌊0.4⌋ seconds, and let 500 of 500 through."""
    async with opener(clock) as store:
        assert await _admitted(store, Bucket.of(100, 1, burst=20), 100) == 20


@pytest.mark.real
@pytest.mark.parametrize("limit", [59, 119])
async def test_a_rate_that_no_second_divides_is_delivered(opener: Any, clock: Any, limit: int) -> None:
    """throttled-py: whole seconds of refill made 30 of 59 a minute, and 60 of 119."""
    async with opener(clock) as store:
        shape, passed = Bucket.of(limit, 60, burst=2), 0
        for _ in range(240):
            passed += await _admitted(store, shape, 1)
            clock.pass_(0.25)
        assert limit <= passed <= limit + 2


@pytest.mark.real
@pytest.mark.parametrize("shape", [Window.of(5, 0.2), Bucket.of(5, 0.2, burst=5)])
async def test_a_period_below_a_second_is_no_error(opener: Any, clock: Any, shape: Any) -> None:
    """throttled-py: division by zero."""
    async with opener(clock) as store:
        assert await _admitted(store, shape, 9) == 5
        clock.pass_(0.2)
        assert await _admitted(store, shape, 9) == 5


@pytest.mark.real
@pytest.mark.parametrize("shape", [Window.of(10, 60), Bucket.of(10, 60, burst=10)])
async def test_a_refused_cost_burns_nothing(opener: Any, clock: Any, shape: Any) -> None:
    """limits: a fixed window counted what it refused, so that smaller costs were refused as well."""
    async with opener(clock) as store:
        for cost in (6, 5, 5, 11):
            verdict = await store.ask(Question((Ask("limit", "k", shape, cost),)))
        assert not verdict.allowed
        assert verdict.limits[0].remaining == 4


@pytest.mark.real
@pytest.mark.parametrize("shape", [Window.of(100, 60), Bucket.of(100, 60)])
async def test_a_limit_is_one_key(server: Any, clock: Any, shape: Any) -> None:
    """throttled-py: a sliding window had two, on different slots of a cluster."""
    from headworks.store.valkey import ValkeyStore

    store = ValkeyStore(server.url, clock=clock)
    for _ in range(3):
        await store.ask(Question((Ask("limit", "k", shape),)))
        clock.pass_(30)
    await store.aclose()
    assert server.client.dbsize() == 1


@pytest.mark.real
async def test_forgetting_a_key_does_not_search_for_it(server: Any) -> None:
    """limits: a reset asked the server for KEYS, which stops it for everyone."""
    from headworks.store.valkey import ValkeyStore

    server.client.config_resetstat()
    store = ValkeyStore(server.url)
    await store.forget(["k"])
    await store.aclose()
    used = server.client.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan"} & used.keys()


async def test_a_decision_starts_no_task_and_sweeps_no_keys() -> None:
    """limits: every hit in memory scheduled a look at every key there was."""
    store, shape = MemoryStore(), Window.of(10, 60)
    for number in range(5_000):
        await store.ask(Question((Ask("limit", f"k{number}", shape),)))
    looks = 0

    def until(held: Any) -> int:
        nonlocal looks
        looks += 1
        return 2**60

    store.logs._until = until
    await asyncio.sleep(1)
    await store.ask(Question((Ask("limit", "k", shape),)))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert looks <= 64


async def test_nobody_is_held_up_by_another_keys_wait() -> None:
    """pyrate-limiter: a lock was held across the wait; an idle key's question took two seconds."""
    limiter, loop = Limiter(MemoryStore(), "1/s burst 1"), asyncio.get_running_loop()
    await limiter.take("busy")
    waiting = asyncio.create_task(limiter.wait("busy", timeout=5))
    await asyncio.sleep(0)
    began = loop.time()
    assert (await limiter.wait("idle", timeout=5)).allowed
    assert loop.time() == began
    await waiting


async def test_requests_and_tokens_are_taken_together() -> None:
    """pyrate-limiter: several rates could only be asked of one and the same key and cost."""
    limits = Limits(MemoryStore(), {"requests": "3/min", "tokens": "1000/min"})
    assert (await limits.take("ann", {"requests": 1, "tokens": 900})).allowed
    assert not (await limits.take("ann", {"requests": 1, "tokens": 200})).allowed
    assert [state.remaining for state in (await limits.peek("ann")).limits] == [2, 100]


async def test_a_large_cost_is_not_overtaken_by_small_ones_that_come_later() -> None:
    """aiolimiter: waiters went by amount, so eight of ten waited until the small ones had stopped."""
    limiter, loop = Limiter(MemoryStore(), "10/s burst 10"), asyncio.get_running_loop()
    await limiter.take("k", 10)
    began = loop.time()

    async def small() -> None:
        while loop.time() < began + 5:
            await limiter.wait("k", timeout=10)

    large = asyncio.create_task(limiter.wait("k", 8, timeout=10))
    await asyncio.sleep(0)
    others = asyncio.create_task(small())
    await large
    assert loop.time() - began == pytest.approx(0.8)
    await others


async def test_a_period_of_a_window_never_sees_a_burst_and_its_refill() -> None:
    """aiolimiter: a burst and what refilled meanwhile made nearly twice the rate in the first period."""
    limiter, passed = Limiter(MemoryStore(), "100/min"), list[Verdict]()
    for _ in range(600):
        passed.append(await limiter.take("k"))
        await asyncio.sleep(0.0999)
    assert sum(verdict.allowed for verdict in passed) == 100
