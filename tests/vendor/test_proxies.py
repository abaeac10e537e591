"""The environment's proxies are honoured, although httpx2 ignores them for a client with a transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from headworks.testing.fake_vendor import FakeVendor
from headworks.testing.fake_vendor.server import serving


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """A real forward proxy on loopback: whatever host is named, it asks the fake vendor."""
    asked: list[str] = []

    async with serving(FakeVendor()) as vendor:
        host, port = vendor.removeprefix("http://").split(":")

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner, outer = await asyncio.open_connection(host, int(port))
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, _, rest = head.partition("\r\n")
                method, url, version = first.split(" ")
                asked.append(f"{method} {url}")
                path = "/" + url.split("/", 3)[3]
                outer.write(f"{method} {path} {version}\r\nconnection: close\r\n{rest}".encode())
                length = next(
                    int(line.split(":")[1])
                    for line in rest.split("\r\n")
                    if line.lower().startswith("content-length")
                )
                outer.write(await reader.readexactly(length))
                while piece := await inner.read(65536):
                    writer.write(piece)
                    await writer.drain()
            finally:
                outer.close()
                writer.close()

        server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        address = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
        async with server:
            yield address, asked


@pytest.mark.real
@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_go_through_the_environments_proxy(
    house: Any, monkeypatch: pytest.MonkeyPatch, name: str, streamed: bool
) -> None:
    """The vendor's host does not exist: only the proxy can answer for it."""
    async with proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("http_proxy", address)
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        house.server = None
        base_url = "http://vendor.invalid" + ("/v1" if name == "openai" else "")
        vendor = house.vendor(profile=name, base_url=base_url, quota=["600/min", "90000 tokens/min"])
        settings: Any = {"base_url": base_url, "http_client": vendor.client, "api_key": "k"}
        ask: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": streamed}
        ask |= {"max_tokens": 5}
        if name == "openai":
            answer = await openai.AsyncOpenAI(**settings).chat.completions.create(**ask)
        else:
            answer = await anthropic.AsyncAnthropic(**settings).messages.create(**ask)
        if streamed:
            assert [event async for event in answer]
        path = "/v1/chat/completions" if name == "openai" else "/v1/messages"
        assert asked == [f"POST http://vendor.invalid{path}"]
        assert vendor.statistics().in_flight == 0
        await vendor.aclose()


@pytest.mark.real
async def test_a_host_that_no_proxy_names_is_asked_directly(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy() as (address, asked), serving(FakeVendor()) as vendor_address:
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        house.server = None
        vendor = house.vendor(base_url=vendor_address)
        assert (await vendor.client.get("/models")).status_code == 200
        assert asked == []
        await vendor.aclose()
