"""The generator in virtual time: what is sent when, and that every request ends exactly once."""

from __future__ import annotations

import asyncio

from headworks.local.load.drive import CEILING, Drive, encode
from headworks.local.load.outcome import Kind
from headworks.local.load.profiles import CHAT, SEARCH, Crowd, Profile
from headworks.local.load.tally import Tally
from headworks.local.load.wire import Answer, Broken

OK = Answer(200, "application/json", b"{}")


def _profile(rate: float) -> Profile:
    return Profile("p", "", (Crowd("c", "", rate, ("k",), ("127.0.0.5",), (CHAT,), even=True),))


async def test_requests_go_out_when_due_however_slow_the_answers_are() -> None:
    """Ten requests a second against answers that take a minute: all on time, latency one minute."""
    sent: list[tuple[float, str]] = []
    loop, tally = asyncio.get_running_loop(), Tally()

    async def exchange(request: bytes, source: str) -> Answer:
        sent.append((loop.time() - began, source))
        await asyncio.sleep(60)
        return OK

    drive, began = Drive(_profile(10), exchange, host="h", tally=tally), loop.time()
    await drive.send_all(2.0, seed=1)
    assert loop.time() - began == 2.0
    assert [round(at, 6) for at, _ in sent] == [round(0.05 + n / 10, 6) for n in range(20)]
    assert {source for _, source in sent} == {"127.0.0.5"}
    assert tally.crowd("c").waiting == 20
    await drive.wait_answers(100)
    assert tally.crowd("c").served == 20
    assert tally.latency(Kind.SERVED).p50 == 60.0


async def test_answers_that_never_come_are_given_up_and_counted() -> None:
    async def exchange(request: bytes, source: str) -> Answer:
        await asyncio.Event().wait()
        return OK

    tally = Tally()
    drive = Drive(_profile(10), exchange, host="h", tally=tally)
    await drive.send_all(1.0, seed=1)
    await drive.wait_answers(5.0)
    count = tally.crowd("c")
    assert (count.sent, count.broken, count.waiting) == (10, 10, 0)


async def test_a_request_that_breaks_is_counted_with_its_kind() -> None:
    async def exchange(request: bytes, source: str) -> Answer:
        raise Broken("cut off")

    tally = Tally()
    await Drive(_profile(10), exchange, host="h", tally=tally).send_all(1.0, seed=1)
    assert {(o.layer, o.reason, n) for (_, o), n in tally.ended.items()} == {
        ("connection", "cut off", 10)
    }


async def test_what_is_due_beyond_the_ceiling_is_counted_as_unsent() -> None:
    async def exchange(request: bytes, source: str) -> Answer:
        await asyncio.sleep(1000)
        return OK

    tally = Tally()
    drive = Drive(_profile(CEILING), exchange, host="h", tally=tally)
    await drive.send_all(1.5, seed=1)
    assert (tally.sent["c"], tally.unsent) == (CEILING, CEILING // 2)
    await drive.wait_answers(0)
    assert tally.crowd("c").broken == CEILING


def test_a_call_becomes_one_http_request() -> None:
    head, _, body = encode(CHAT, "free-1", "127.0.0.1:80").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /chat HTTP/1.1\r\n")
    assert b"\r\nX-API-Key: free-1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.decode() == CHAT.body
    assert b"X-API-Key" not in encode(SEARCH, "", "127.0.0.1:80")
