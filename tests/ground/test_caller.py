"""Who looks whether a caller is still there, when, and what becomes of those who wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headworks.caller import Presence, staying
from headworks.errors import CallerLeft

GONE = {"type": "http.disconnect"}


class Server:
    """A server's side of one request, as uvicorn has it: every reader hears of the disconnect."""

    def __init__(self, *parts: bytes, bodiless: bool = False) -> None:
        self.parts = list(parts)
        self.gone = asyncio.Event()
        self.readers = self.most_readers = self.asked = 0
        headers = [] if bodiless else [(b"content-length", b"1")]
        self.caller = Presence({"type": "http", "headers": headers}, self.receive)

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.parts:
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
        self.readers += 1
        self.most_readers = max(self.most_readers, self.readers)
        try:
            await self.gone.wait()
        finally:
            self.readers -= 1
        return dict(GONE)


async def wait_at(caller: Presence | None, seconds: float = 60.0) -> str:
    """Wait as a vendor call does; what came of it."""
    try:
        async with staying(caller):
            await asyncio.sleep(seconds)
    except CallerLeft:
        return "left"
    return "stayed"


async def leaving(server: Server, after: float = 1.0) -> None:
    await asyncio.sleep(after)
    server.gone.set()


async def test_a_wait_whose_own_time_is_up_keeps_nobody_else_from_hearing() -> None:
    """Its task still unwinds when the caller leaves; others may wait on."""
    server = Server(b"body")
    await server.caller.receive()

    async def unwinding() -> None:
        async with asyncio.timeout(0.5) as own:
            server.caller.watch(own)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(1)

    ended = await asyncio.gather(
        *(unwinding() for _ in range(3)),
        wait_at(server.caller),
        leaving(server),
        return_exceptions=True,
    )
    assert [type(one) for one in ended[:3]] == [TimeoutError] * 3
    assert ended[3] == "left"
    assert asyncio.get_running_loop().time() < 1010


async def test_who_waits_for_a_vendor_hears_that_the_caller_left() -> None:
    server = Server(b"body")
    await server.caller.receive()
    assert await asyncio.gather(wait_at(server.caller), leaving(server)) == ["left", None]
    assert asyncio.get_running_loop().time() == pytest.approx(1001.0)
    assert server.caller.left
    assert await wait_at(server.caller) == "left", "and who comes later hears it at once"
    assert asyncio.get_running_loop().time() == pytest.approx(1001.0)


async def test_nobody_looks_while_nobody_waits() -> None:
    """No task, no question: what is not needed costs nothing."""
    server = Server(b"body")
    await server.caller.receive()
    await asyncio.sleep(5)
    assert (server.asked, len(asyncio.all_tasks())) == (1, 1)


async def test_nobody_looks_before_the_body_has_been_read() -> None:
    """Its bytes are the application's; the watch begins by itself at their end."""
    server = Server(b"a", b"b")
    waiting = asyncio.create_task(wait_at(server.caller))
    await asyncio.sleep(1)
    assert server.asked == 0
    assert (await server.caller.receive())["body"] == b"a"
    await asyncio.sleep(1)
    assert server.asked == 1
    assert (await server.caller.receive())["body"] == b"b"
    server.gone.set()
    assert await waiting == "left"


async def test_the_message_of_a_request_without_a_body_is_kept_for_the_application() -> None:
    server = Server(b"", bodiless=True)
    waiting = asyncio.create_task(wait_at(server.caller, 10))
    await asyncio.sleep(1)
    assert await server.caller.receive() == {"type": "http.request", "body": b"", "more_body": False}
    later = asyncio.create_task(server.caller.receive())
    await asyncio.sleep(1)
    server.gone.set()
    assert await waiting == "left"
    assert await later == GONE
    assert server.most_readers == 1


async def test_the_application_and_the_watch_are_one_reader() -> None:
    """A stream's own listener hears it for both; cancelled, the watch goes on by itself."""
    server = Server(b"body")
    await server.caller.receive()
    listener = asyncio.create_task(server.caller.receive())
    await asyncio.sleep(1)
    waiting = asyncio.create_task(wait_at(server.caller))
    await asyncio.sleep(1)
    assert server.readers == 1
    listener.cancel()
    await asyncio.sleep(1)
    assert (server.readers, server.most_readers) == (1, 1)
    server.gone.set()
    assert await waiting == "left"
    assert await server.caller.receive() == GONE


@pytest.mark.parametrize("application_listens", [True, False])
async def test_what_is_heard_after_the_last_byte_does_not_count(application_listens: bool) -> None:
    """Servers say that a caller left as soon as an answer is complete: background tasks go on."""
    server = Server(b"body")
    await server.caller.receive()
    listener = asyncio.create_task(server.caller.receive()) if application_listens else None
    await asyncio.sleep(0)
    waiting = asyncio.create_task(wait_at(server.caller, 5))
    await asyncio.sleep(1)
    server.caller.answered()
    server.gone.set()
    assert await waiting == "stayed"
    assert not server.caller.left
    assert await wait_at(server.caller, 5) == "stayed"
    if listener is not None:
        assert await listener == GONE
    assert len(asyncio.all_tasks()) == 1


async def test_after_an_answer_to_nobody_background_tasks_go_on_too() -> None:
    server = Server(b"body")
    await server.caller.receive()
    await asyncio.gather(wait_at(server.caller), leaving(server))
    server.caller.answered()
    assert await wait_at(server.caller, 5) == "stayed"


async def test_a_cancellation_of_somebody_else_stays_one() -> None:
    server = Server(b"body")
    await server.caller.receive()
    waiting = asyncio.create_task(wait_at(server.caller))
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    server.caller.answered()
    await asyncio.sleep(0)
    assert (server.readers, len(asyncio.all_tasks())) == (0, 1)


async def test_a_timeout_inside_stays_one() -> None:
    server = Server(b"body")
    await server.caller.receive()
    with pytest.raises(TimeoutError, match="theirs"):
        async with staying(server.caller):
            raise TimeoutError("theirs")
    server.caller.answered()


async def test_a_server_that_never_says_so_is_not_asked_for_ever() -> None:
    """Some test clients answer `receive` with a request each time: nothing can be learnt of them."""

    async def receive() -> dict[str, Any]:
        asked.append(1)
        return {"type": "http.request", "body": b"", "more_body": False}

    asked: list[int] = []
    caller = Presence({"type": "http", "headers": []}, receive)
    assert await wait_at(caller, 5) == "stayed"
    assert len(asked) == 2


async def test_a_server_whose_receive_breaks_costs_the_watch_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def receive() -> dict[str, Any]:
        raise RuntimeError("broken")

    caller = Presence({"type": "http", "headers": []}, receive)
    assert await wait_at(caller, 5) == "stayed"
    assert "does not say whether a caller is there" in caplog.text


async def test_outside_of_a_request_there_is_nobody_to_leave() -> None:
    assert await wait_at(None, 5) == "stayed"
