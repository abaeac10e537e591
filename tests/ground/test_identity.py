"""Who is asking: addresses from trusted hops only, keys only when somebody vouches for them."""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.current import Criticality
from headworks.identity import MAX_ASKING, MAX_KEY, Caller, Callers, Identifier, Rank
from headworks.testing.loop import run

TRUST = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
TIERS = {"free": Rank(Criticality.SHEDDABLE), "pro": Rank(Criticality.DEFAULT, 3)}


def scope(peer: str | None = "10.0.0.1", *headers: tuple[str, str | bytes]) -> dict[str, Any]:
    encoded = [
        (name.lower().encode(), value.encode() if isinstance(value, str) else value)
        for name, value in headers
    ]
    return {"type": "http", "client": (peer, 40_000) if peer else None, "headers": encoded}


class Answers:
    """A resolver that counts its calls and answers by table, after a while."""

    def __init__(self, seconds: float = 0.1, **tiers: str) -> None:
        self.seconds, self.tiers = seconds, tiers
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def __call__(self, key: str) -> str | None:
        self.asked.append(key)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.tiers.get(key)


def identifier(
    resolve: Callable[[str], Awaitable[str | None]] | None = None, **options: Any
) -> Identifier:
    more = {name: options.pop(name) for name in ("timeout", "warn") if name in options}
    told: dict[str, Any] = {"header": "X-API-Key", "tiers": TIERS, "default_tier": "free"}
    warn: dict[str, Any] = {"warn": lambda sentence: None}
    return Identifier(Callers(**(told | options)), resolve=resolve, **(warn | more))


def keyed(key: str | bytes, peer: str = "203.0.113.7") -> dict[str, Any]:
    return scope(peer, ("X-API-Key", key))


def test_a_key_of_the_table_is_known_at_once_and_never_stored_as_sent() -> None:
    """The tenant is a digest: the same key, the same tenant; the key itself is nowhere in it."""
    who = identifier(keys={"secret-key": "pro"}).identify(keyed("secret-key"))
    assert (who.tier, who.known, who.weight, who.criticality) == ("pro", True, 3, Criticality.DEFAULT)
    assert "secret-key" not in repr(who)
    assert who == identifier(keys={"secret-key": "pro"}).identify(keyed("secret-key"))


async def test_unknown_keys_and_no_key_are_counted_by_address() -> None:
    """Inventing keys gains nothing: every invented one is the same tenant as none."""
    resolve = Answers()
    ident = identifier(resolve)
    none = await ident.resolve(scope("203.0.113.7"))
    for key in ("a", "b", "c"):
        assert await ident.resolve(keyed(key)) == none
    assert (none.tenant, none.tier, none.known) == ("ip:203.0.113.7", "free", False)


async def test_before_the_resolver_was_asked_a_caller_is_nobody() -> None:
    """`identify` waits for nothing: a key not seen yet gets the default class, then its own."""
    ident = identifier(Answers(k="pro"))
    assert ident.identify(keyed("k")).tier == "free"
    assert (await ident.resolve(keyed("k"))).tier == "pro"
    assert ident.identify(keyed("k")).tier == "pro"


async def test_many_at_once_with_one_key_ask_once() -> None:
    """A flood of one key is one question to the resolver, also when the first of them leaves."""
    resolve = Answers(k="pro")
    ident = identifier(resolve)
    first = asyncio.create_task(ident.resolve(keyed("k")))
    rest = [asyncio.create_task(ident.resolve(keyed("k"))) for _ in range(50)]
    await asyncio.sleep(0.05)
    first.cancel()
    assert {(await task).tier for task in rest} == {"pro"}
    assert resolve.asked == ["k"]


async def test_an_answer_is_used_for_its_time_only() -> None:
    """Within the TTL nobody asks again; after it, once."""
    resolve = Answers(k="pro")
    ident = identifier(resolve, ttl=60.0)
    for pause in (0, 30, 29):
        await asyncio.sleep(pause)
        await ident.resolve(keyed("k"))
    assert len(resolve.asked) == 1
    await asyncio.sleep(2)
    resolve.tiers["k"] = "free"
    assert (await ident.resolve(keyed("k"))).tier == "free"
    assert len(resolve.asked) == 2


async def test_invented_keys_push_no_known_key_out() -> None:
    """Unknown keys have a memory of their own, and that is bounded too."""
    resolve = Answers(seconds=0.0, k="pro")
    ident = identifier(resolve, size=10)
    await ident.resolve(keyed("k"))
    for number in range(100):
        await ident.resolve(keyed(f"invented-{number}"))
    assert ident.identify(keyed("k")).tier == "pro"
    assert len(ident._known) == 1
    assert len(ident._unknown) == 10


async def test_a_key_that_is_new_is_known_soon() -> None:
    """That nobody vouched for a key is believed for ten seconds, not for the whole TTL."""
    resolve = Answers()
    ident = identifier(resolve, ttl=60.0)
    assert (await ident.resolve(keyed("new"))).known is False
    resolve.tiers["new"] = "pro"
    await asyncio.sleep(9.5)
    assert (await ident.resolve(keyed("new"))).known is False
    assert len(resolve.asked) == 1
    await asyncio.sleep(0.6)
    assert (await ident.resolve(keyed("new"))).tier == "pro"


async def test_a_flood_of_invented_keys_asks_about_so_many_at_once() -> None:
    """Callers who leave do not pile up questions; beyond the bound a new key is nobody's for now."""
    resolve = Answers(seconds=0.9, k="pro")
    ident = identifier(resolve, ttl=60.0)
    await ident.resolve(keyed("k"))
    await asyncio.sleep(100)
    flood = [asyncio.create_task(ident.resolve(keyed(f"invented-{n}"))) for n in range(MAX_ASKING + 50)]
    await asyncio.sleep(0)
    for task in flood:
        task.cancel()
    await asyncio.sleep(0.1)
    assert len(resolve.asked) == MAX_ASKING + 1
    assert (await ident.resolve(keyed("k"))).tier == "pro", "what was known is not forgotten for it"
    await asyncio.sleep(1.0)
    assert ident._asking == {}
    assert (await ident.resolve(keyed("k"))).tier == "pro"
    assert resolve.asked[-1] == "k"


async def test_a_resolver_hears_nothing_of_whose_request_came_first() -> None:
    """Its answer is everybody's: neither a deadline nor anything else of one request is around it."""
    seen: list[str] = []
    mark = contextvars.ContextVar("mark", default="nobody's")

    async def resolve(key: str) -> str | None:
        seen.append(mark.get())
        return "pro"

    mark.set("the first caller's")
    await identifier(resolve).resolve(keyed("k"))
    assert seen == ["nobody's"]


async def test_every_await_of_a_lookup_may_be_cancelled() -> None:
    """Whoever leaves leaves nothing behind, and the others get their answer."""
    resolve = Answers(k="pro")
    for steps in range(6):
        ident = identifier(resolve)
        leaving = asyncio.create_task(ident.resolve(keyed("k")))
        staying = asyncio.create_task(ident.resolve(keyed("k")))
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).tier == "pro"
        await asyncio.wait((leaving,))
        assert ident._asking == {}


WRONG: Any = Caller


@pytest.mark.parametrize("answer", [3, ["pro"], {"tier": "pro"}, WRONG(["pro"]), WRONG("pro", 7)])
async def test_an_answer_that_is_none_makes_the_caller_nobody(answer: Any) -> None:
    """Whatever a resolver returns, its caller is served, and somebody is told."""

    async def resolve(key: str) -> Any:
        return answer

    warnings: list[str] = []
    who = await identifier(resolve, warn=warnings.append).resolve(keyed("k"))
    assert who.known is False
    assert "TypeError" in warnings[0]


async def test_a_tenant_whose_name_cannot_be_written_makes_the_caller_nobody() -> None:
    """Half a surrogate, as JSON can hold it, once made each of its requests a 500."""

    async def resolve(key: str) -> Caller:
        return Caller("pro", "\ud800")

    warnings: list[str] = []
    ident = identifier(resolve, warn=warnings.append)
    assert (await ident.resolve(keyed("k"))).known is False
    assert ident.identify(keyed("k")).known is False
    assert "UnicodeEncodeError" in warnings[0]


async def test_what_a_resolver_raises_tells_no_key() -> None:
    """Databases like to quote what they were asked."""

    async def resolve(key: str) -> str | None:
        raise LookupError(f"no row for {key}")

    warnings: list[str] = []
    await identifier(resolve, warn=warnings.append).resolve(keyed("sk-secret"))
    assert len(warnings) == 1
    assert "LookupError" in warnings[0]
    assert "sk-secret" not in warnings[0]


async def test_keys_of_one_tenant_are_users_of_their_own_and_share_their_tenant() -> None:
    """From the table or the resolver; the tenant's name is hashed like a key, and "" is none."""
    table = {"a": Caller("pro", "acme"), "b": Caller("free", "acme"), "c": Caller("pro", "")}
    ident = identifier(Answers(), keys=table)

    async def resolve(key: str) -> Caller | None:
        return table[key]

    asked = identifier(resolve)
    for each in (ident, asked):
        who = [await each.resolve(keyed(key)) for key in "abc"]
        first, second, alone = who
        assert first.tenant == second.tenant != first.user
        assert first.user != second.user
        assert (first.tier, second.tier) == ("pro", "free")
        assert alone.tenant == alone.user
        assert "acme" not in repr(who)


async def test_other_callers_may_take_the_place_while_what_the_resolver_said_stays() -> None:
    """A tier that is gone is the default one; a key that left the table is the resolver's; no key is
    asked about again."""
    resolve = Answers(k="pro", t="pro")
    ident = identifier(resolve, keys={"t": "free"})
    assert (await ident.resolve(keyed("k"))).weight == 3
    ident.callers = Callers(header="X-Key", tiers={"free": Rank(weight=7)}, default_tier="free")
    assert (await ident.resolve(keyed("k"))).known is False, "another header now"
    for key in ("k", "t"):
        request = scope("203.0.113.7", ("X-Key", key))
        assert ident.identify(request).weight == 7
        who = await ident.resolve(request)
        assert (who.tier, who.weight, who.known) == ("free", 7, True)
    assert resolve.asked == ["k", "t"]


async def test_a_request_is_told_by_the_callers_it_is_asked_with() -> None:
    """What admission saw under an old policy does not stand for the new one."""
    ident = identifier(keys={"k": "pro"})
    old, request = ident.callers, keyed("k")
    assert ident.identify(request).tier == "pro"
    ident.callers = Callers(header="X-API-Key", tiers=TIERS, default_tier="free", keys={"k": "free"})
    assert (await ident.resolve(request, old)).tier == "pro"
    assert (await ident.resolve(request)).tier == "free"


@pytest.mark.parametrize("error", [RuntimeError("database"), TimeoutError(), None])
async def test_a_resolver_that_fails_or_hangs_makes_the_caller_nobody(error: Exception | None) -> None:
    """The caller is served in the default tier by address, within the bound, and somebody is told."""
    resolve = Answers(seconds=0.1 if error else 3600.0, k="pro")
    resolve.error = error
    warnings: list[str] = []
    ident = identifier(resolve, timeout=1.0, warn=warnings.append)
    began = asyncio.get_running_loop().time()
    who = await ident.resolve(keyed("k"))
    assert (who.tier, who.tenant) == ("free", "ip:203.0.113.7")
    assert asyncio.get_running_loop().time() - began <= 1.0
    assert len(warnings) == 1
    assert "secret" not in warnings[0]
    await ident.resolve(keyed("k"))
    assert len(resolve.asked) == 1, "a failed resolver is left alone for a moment"


async def test_a_resolver_that_resists_its_cancellation_holds_nobody() -> None:
    """Even then a caller waits no longer than twice the bound."""

    async def stubborn(key: str) -> str | None:
        for _ in range(10):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue
        return None

    began = asyncio.get_running_loop().time()
    who = await identifier(stubborn, timeout=1.0).resolve(keyed("k"))
    assert who.known is False
    assert asyncio.get_running_loop().time() - began <= 2.0


async def test_a_known_key_keeps_its_tier_while_the_resolver_fails() -> None:
    """A paying caller does not fall to the free tier because a database hiccups."""
    resolve = Answers(k="pro")
    ident = identifier(resolve, ttl=60.0)
    await ident.resolve(keyed("k"))
    await asyncio.sleep(100)
    resolve.error = RuntimeError("database")
    assert (await ident.resolve(keyed("k"))).tier == "pro"


async def test_a_tier_the_policy_does_not_have_is_the_default_one_of_a_known_key() -> None:
    """The resolver vouches for the key, so it is counted by itself."""
    warnings: list[str] = []
    who = await identifier(Answers(k="platinum"), warn=warnings.append).resolve(keyed("k"))
    assert (who.tier, who.known) == ("free", True)
    assert "platinum" in warnings[0]


@pytest.mark.parametrize(
    "key", ["", "  ", "x" * (MAX_KEY + 1), "a\x00b", "a\nb", "a\x7fb", b"\xff\xfe", "a\u200bb"]
)
async def test_a_malformed_key_reaches_neither_resolver_nor_memory(key: str | bytes) -> None:
    """Too long, not printable, or no text: treated as none."""
    resolve = Answers()
    ident = identifier(resolve)
    assert (await ident.resolve(keyed(key))).tenant == "ip:203.0.113.7"
    assert resolve.asked == []
    assert len(ident._unknown) == 0


async def test_two_keys_in_one_request_are_none() -> None:
    """Who sends two keys would be counted by whichever a proxy happens to prefer."""
    ident = identifier(keys={"a": "pro", "b": "pro"})
    who = await ident.resolve(scope("203.0.113.7", ("X-API-Key", "a"), ("X-API-Key", "b")))
    assert who.known is False


@given(st.binary(max_size=2000), st.binary(max_size=300))
def test_no_key_breaks_anything_or_grows_a_tenant(key: bytes, forwarded: bytes) -> None:
    """Whatever is sent as a key, the tenant is short and made of harmless characters."""
    request = scope("10.0.0.1", ("X-API-Key", key), ("X-Forwarded-For", forwarded))

    async def scenario() -> None:
        ident = identifier(Answers(seconds=0.0, k="pro"), trust=TRUST)
        for who in (ident.identify(request), await ident.resolve(request)):
            assert len(who.tenant) <= 60
            assert not set(who.tenant) - set("abcdefghijklmnopqrstuvwxyz0123456789:./")

    run(scenario())
