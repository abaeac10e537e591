"""The limits of callers and routes, from the policy to the answers, in virtual time."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from tests.protected import POLICY, Service, chat_service

from headworks import Headworks
from headworks.current import Criticality, Current, current, enter, leave
from headworks.errors import QuotaExceeded
from headworks.fairness.gate import Ticket
from headworks.fairness.limits import NOTHING
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question
from headworks.verdict import Verdict


async def test_the_eleventh_request_is_refused_and_the_next_user_served() -> None:
    """429 with Retry-After, RateLimit fields and a problem body that names layer and limit."""
    service = chat_service()
    async with service.client(key="free-1") as client:
        answers = [await client.get("/hello") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    last = answers[-1]
    assert last.headers["content-type"] == "application/problem+json"
    assert int(last.headers["retry-after"]) == 60
    assert last.headers["ratelimit-policy"] == '"tier:free";q=10;w=60'
    assert last.headers["ratelimit"] == '"tier:free";r=0;t=60'
    problem = last.json()
    assert (problem["layer"], problem["reason"]) == ("fairness", "quota-exceeded")
    assert problem["limit"] == "tier:free"
    async with service.client(key="free-2") as client:
        assert (await client.get("/hello")).status_code == 200


async def test_waiting_as_long_as_told_is_long_enough() -> None:
    service = chat_service()
    async with service.client(key="free-1") as client:
        for _ in range(10):
            await client.get("/hello")
        wait = (await client.get("/hello")).json()["retry_after"]
        await asyncio.sleep(wait)
        assert (await client.get("/hello")).status_code == 200


async def test_a_served_answer_tells_the_same_limits() -> None:
    """Both limits of the route, from the verdict that admitted it."""
    service = chat_service()
    async with service.client(key="pro-1") as client:
        answer = await client.post("/chat", json={})
    assert answer.headers.get_list("ratelimit-policy") == [
        '"tier:pro";q=100;w=60, "endpoint:/chat";q=3;w=60'
    ]
    assert answer.headers["ratelimit"].startswith('"tier:pro";r=99;')
    assert "retry-after" not in answer.headers
    assert len(service.store.questions) == 1


async def test_an_application_that_tells_limits_itself_does_not_double_them() -> None:
    service = Service()

    @service.app.get("/own")
    async def own() -> PlainTextResponse:
        return PlainTextResponse("ok", headers={"RateLimit": '"mine";r=1;t=1', "X-Other": "stays"})

    async with service.client(key="pro-1") as client:
        answer = await client.get("/own")
    (told,) = answer.headers.get_list("ratelimit")
    assert told.startswith('"tier:pro";r=99;')
    assert answer.headers["x-other"] == "stays"


async def test_an_endpoint_in_a_thread_is_limited_as_any_other() -> None:
    service = Service()

    @service.app.get("/thread")
    def thread() -> str:
        return "done"

    async with service.client(key="free-1") as client:
        statuses = [(await client.get("/thread")).status_code for _ in range(11)]
    assert statuses == [200] * 10 + [429]


async def test_callers_of_different_tiers_at_the_same_time_are_each_told_their_own() -> None:
    """Nothing of a request is kept on an object that requests share."""
    service = chat_service()
    async with service.client(key="pro-1") as pro, service.client(key="b-1") as bursty:
        calls = [client.get("/hello") for _ in range(20) for client in (pro, bursty)]
        answers = await asyncio.gather(*calls)
    rules = [answer.headers["ratelimit-policy"].partition(";")[0] for answer in answers]
    assert rules == ['"tier:pro"', '"tier:bursty"'] * 20


async def test_a_refusal_by_the_endpoint_burns_nothing_of_the_user() -> None:
    """One question, all or nothing."""
    service = chat_service()
    async with service.client(key="free-1") as client:
        chats = [(await client.post("/chat", json={})).status_code for _ in range(8)]
        others = [(await client.get("/hello")).status_code for _ in range(8)]
    assert chats == [200] * 3 + [429] * 5
    assert others == [200] * 7 + [429]


async def test_included_routers_are_limited_apart_and_for_what_they_are() -> None:
    """The same router under two prefixes has two limits; parameters share one."""
    service = Service()
    router = APIRouter()

    @router.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    service.app.include_router(router, prefix="/a")
    service.app.include_router(router, prefix="/b")
    async with service.client(key="pro-1") as client:
        first = [(await client.get(f"/a/items/{number}")).status_code for number in range(3)]
        second = [(await client.get(f"/b/items/{number}")).status_code for number in range(3)]
    assert first == second == [200, 200, 429]


async def test_a_ceiling_for_all_users_together() -> None:
    service = Service()

    @service.app.get("/together")
    async def together() -> int:
        return 1

    statuses = []
    for key in ("pro-1", "pro-2", "free-1", "free-2"):
        async with service.client(key=key) as client:
            statuses.append((await client.get("/together")).status_code)
    assert statuses == [200, 200, 200, 429]


async def test_a_bucket_lets_its_burst_through_and_no_more() -> None:
    """ "60/min burst 3": three at once, then one a second."""
    service = chat_service()
    async with service.client(key="b-1") as client:
        assert [(await client.get("/hello")).status_code for _ in range(4)] == [200, 200, 200, 429]
        await asyncio.sleep(1.0)
        assert [(await client.get("/hello")).status_code for _ in range(2)] == [200, 429]


async def test_inventing_keys_or_addresses_gains_nothing() -> None:
    """Unknown keys count by address; a spoofed X-Forwarded-For from outside changes no address."""
    service = chat_service()
    async with service.client() as client:
        statuses = [
            (
                await client.get(
                    "/hello",
                    headers={"X-API-Key": f"invented-{n}", "X-Forwarded-For": f"198.51.100.{n}"},
                )
            ).status_code
            for n in range(12)
        ]
    assert statuses == [200] * 10 + [429] * 2


async def test_behind_the_gateway_clients_are_told_apart() -> None:
    """The gateway's peer address is trusted, so the address it saw counts."""
    service = chat_service()
    async with service.client("10.0.0.2") as client:
        for number in range(12):
            answer = await client.get("/hello", headers={"X-Forwarded-For": f"198.51.100.{number}"})
            assert answer.status_code == 200


async def test_malformed_json_is_the_framework_s_422_after_the_limits() -> None:
    service = chat_service()
    async with service.client(key="pro-1") as client:
        statuses = [(await client.post("/chat", content=b"{not json")).status_code for _ in range(4)]
    assert statuses == [422, 422, 422, 429]


async def test_markers_and_explicit_charges() -> None:
    """cost(5) takes five, limit("3/min") adds a limit, charge(n) takes n more or refuses whole."""
    service = Service()
    works = service.works

    @service.app.get("/dear")
    @works.cost(5)
    async def dear() -> int:
        return 1

    @service.app.get("/rare")
    @works.limit("2/min")
    async def rare() -> int:
        return 1

    @service.app.get("/charge/{units}")
    async def charge(units: int) -> int:
        await works.charge(units)
        return units

    async with service.client(key="free-1") as client:
        assert [(await client.get("/dear")).status_code for _ in range(3)] == [200, 200, 429]
    async with service.client(key="free-2") as client:
        assert [(await client.get("/rare")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await client.get("/charge/8")  # 3 taken, 8 more do not fit
        assert (refused.status_code, refused.json()["limit"]) == (429, "tier:free")
        served = await client.get("/charge/6")  # 3 taken, then one and six more do fit
        assert served.status_code == 200
        assert served.headers["ratelimit"].startswith('"tier:free";r=0;')
    with pytest.raises(RuntimeError, match="request"):
        await works.charge(1)
    with pytest.raises(ValueError, match="whole number"):
        await _inside(works, -1)


async def test_a_charge_in_another_event_loop_is_told_so_and_asks_nobody() -> None:
    service = Service()

    @service.app.get("/thread")
    def thread() -> str:
        with pytest.raises(RuntimeError, match=r"charge\(\) belongs to .* anyio.from_thread.run"):
            asyncio.run(service.works.charge(1))
        return "told"

    async with service.running(), service.client(key="free-1") as client:
        asked = len(service.store.questions)
        assert (await client.get("/thread")).json() == "told"
        assert len(service.store.questions) == asked + 1


async def _inside(works: Headworks, units: int) -> None:
    ticket = Ticket(works._fairness, "draft-11", NOTHING, None, False)
    token = enter(Current(ticket=ticket))
    try:
        await works.charge(units)
    finally:
        leave(token)


async def test_what_the_resolver_finds_out_is_known_downstream_from_the_first_request_on() -> None:
    """Tenant, class and weight of a key not seen before reach the handler and its vendor calls."""

    async def resolve(key: str) -> str | None:
        await asyncio.sleep(0.1)
        return "pro" if key == "resolved" else None

    service, seen = Service(resolve=resolve), []

    @service.app.get("/who/{name}")
    async def who(name: str) -> None:
        standing = current()
        seen.append((standing.tenant[:4], standing.criticality, standing.route))

    async with service.client() as client:
        for key in ("resolved", "invented"):
            await client.get("/who/x", headers={"X-API-Key": key})
    assert seen == [
        ("key:", Criticality.DEFAULT, "/who/{name}"),
        ("ip:2", Criticality.SHEDDABLE, "/who/{name}"),
    ]


async def test_a_limit_on_a_path_no_route_has_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    """A limit that silently holds nobody is how limits fail."""
    service = chat_service()
    async with service.client() as client:
        await client.get("/hello")
    assert '"/together"' in caplog.text
    assert '"/chat"' not in caplog.text


async def test_a_verdict_without_limits_is_still_an_answer() -> None:
    """A store that decides without knowing the limits refuses with 429 all the same."""

    class Shut(MemoryStore):
        async def ask(self, question: Question) -> Verdict:
            return Verdict(allowed=False, retry_after=2.0, degraded=True)

    works = Headworks(parse(POLICY, "test", {}), store=Shut())
    app = works.protect(FastAPI())
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert json.loads(answer.content)["reason"] == QuotaExceeded.reason
