"""An application without a socket: an httpx2 transport that streams, also in virtual time.

`httpx2.ASGITransport` collects the whole answer before it returns and knows no timeouts. This one
hands over chunks as they are sent, closes when the reader does, honours the read timeout, and turns
a connection that the vendor drops into the error that a socket would give.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from starlette.types import ASGIApp


class InProcess(httpx2.AsyncBaseTransport):
    """Calls an ASGI application on the running loop, one task per request.

    client  the address from which requests come, as the application sees it
    """

    def __init__(self, app: ASGIApp, *, client: str = "127.0.0.1") -> None:
        self._app, self._client = app, client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _Exchange(request, await request.aread(), self._client)
        exchange.task = asyncio.create_task(exchange.run(self._app), name=f"vendor {request.url.path}")
        try:
            start = await exchange.wait_next()
        except BaseException:
            await exchange.aclose()
            raise
        assert start is not None, "an answer begins with its status"
        return httpx2.Response(start["status"], headers=start.get("headers", []), stream=exchange)


class _Exchange(httpx2.AsyncByteStream):
    """One request and its answer, as it comes. What the application sends waits in `_sent`."""

    task: asyncio.Task[None]

    def __init__(self, request: httpx2.Request, body: bytes, client: str) -> None:
        self._request, self._body, self._client = request, body, client
        self._read_timeout: float | None = request.extensions.get("timeout", {}).get("read")
        self._sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=1)
        self._gone = asyncio.Event()
        self._body_given = False
        self._error: Exception | None = None

    async def run(self, app: ASGIApp) -> None:
        url = self._request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._request.method,
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.split(b"?")[0],
            "query_string": url.query,
            "server": (url.host, url.port),
            "client": (self._client, 0),
            "root_path": "",
        }
        try:
            await app(scope, self._receive, self._sent.put)  # type: ignore[arg-type]  # a queue of messages
        except Exception as error:
            self._error = error
        if not self._gone.is_set():
            await self._sent.put(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def wait_next(self) -> dict[str, Any] | None:
        """The next message, None when the application returned. Raises as a socket's client would."""
        try:
            async with asyncio.timeout(self._read_timeout):
                message = await self._sent.get()
        except TimeoutError:
            text = f"nothing came for {self._read_timeout} s"
            raise httpx2.ReadTimeout(text, request=self._request) from None
        if message is None:
            text = "the vendor closed the connection before its answer was complete"
            raise httpx2.RemoteProtocolError(text, request=self._request) from self._error
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.wait_next()
            assert message is not None
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def aclose(self) -> None:
        """The reader is done: the application sees the disconnect and is waited for."""
        self._gone.set()
        while not self._sent.empty():
            self._sent.get_nowait()
        if not self.task.done():
            await asyncio.wait((self.task,), timeout=1.0)
            self.task.cancel()
            await asyncio.wait((self.task,), timeout=1.0)
