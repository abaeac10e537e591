"""Who is asking: addresses from trusted hops only, keys only when somebody vouches for them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.address import client_address
from headworks.current import Criticality
from headworks.identity import MAX_KEY, Callers, Identifier, Rank
from headworks.testing.loop import run

TRUST = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
TIERS = {"free": Rank(Criticality.SHEDDABLE), "pro": Rank(Criticality.DEFAULT, 3)}


def scope(peer: str | None = "10.0.0.1", *headers: tuple[str, str | bytes]) -> dict[str, Any]:
    encoded = [
        (name.lower().encode(), value.encode() if isinstance(value, str) else value)
        for name, value in headers
    ]
    return {"type": "http", "client": (peer, 40_000) if peer else None, "headers": encoded}


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # an untrusted peer says nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the client wrote is ignored
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # two headers read as one list
        ("10.0.0.1", ["10.0.0.5"], "10.0.0.5"),  # a trusted client
        ("10.0.0.1", ["garbage"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1,"], "10.0.0.1"),
        ("10.0.0.1", ["garbage, 10.0.0.5"], "10.0.0.5"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:443"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6]:443"], "2001:db8:1:2::/64"),
        ("fd00::1", ["2001:db8:1:2:ffff::"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", [], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("::ffff:203.0.113.7", [], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1"], "local"),
        ("not an address", [], "local"),
    ],
)
def test_the_client_is_the_first_untrusted_hop_from_our_side(
    peer: str | None, forwarded: list[str], expected: str
) -> None:
    """Forwarding headers are walked from the right, past trusted hops, from a trusted peer only."""
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert client_address(scope(peer, *headers), TRUST) == expected


def test_a_list_of_hops_without_end_is_looked_at_only_so_far() -> None:
    """A thousand trusted hops cost no more than the bound, and name the last one looked at."""
    hops = ", ".join(["198.51.100.1"] + ["10.0.0.2"] * 1000)
    assert client_address(scope("10.0.0.1", ("X-Forwarded-For", hops)), TRUST) == "10.0.0.2"


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=50)))
def test_no_header_breaks_the_address(forwarded: bytes, peer: str | None) -> None:
    """Whatever is sent, an address comes out, and a short one."""
    request = scope(peer, ("X-Forwarded-For", forwarded))
    assert len(client_address(request, TRUST)) <= 45
    assert len(client_address(scope("10.0.0.1", ("X-Forwarded-For", forwarded)), TRUST)) <= 45


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
