"""`headworks fake-vendor` as its users meet it: a real process on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx2
import openai
import pytest
from typer.testing import CliRunner

from headworks.cli.app import app
from headworks.testing.fake_vendor import FakeVendor, limit
from headworks.testing.fake_vendor.server import PortTaken, serving

COMMAND = [sys.executable, "-m", "headworks", "fake-vendor"]
PATIENCE = 60.0
"""Seconds after which something has not happened; a call that hangs hangs for longer."""
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address; killed at the end if it still runs."""
    process = subprocess.Popen([*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("fake vendor on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def refused(*options: str) -> str:
    """What the verb says when it will not start."""
    done = CliRunner().invoke(app, ["fake-vendor", *options])
    assert done.exit_code == 2, done.output
    return done.output


def test_it_enforces_and_counts_over_a_real_socket_and_ends_on_sigterm() -> None:
    with started("--limit", "2/min", "--mechanism", "sliding", "--latency", "const:0s") as (
        process,
        base,
    ):
        with openai.OpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0) as sdk:
            stream = sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]  # a plain dict
            assert sum(1 for _ in stream) > 5
            assert sdk.chat.completions.create(**BODY).choices  # type: ignore[call-overload]  # as above
            with pytest.raises(openai.RateLimitError):
                sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]  # as above
        with httpx2.Client(base_url=base, timeout=PATIENCE) as client:
            stats = client.get("/stats").json()
            assert (stats["accepted"], stats["rejected"]["requests"], stats["in_flight"]) == (2, 1, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_sigint_ends_it_while_a_call_hangs() -> None:
    with started() as (process, base), socket.create_connection(_address(base)) as hanging:
        with httpx2.Client(base_url=base, timeout=PATIENCE) as client:
            assert client.post("/faults", json={"hang": True}).status_code == 200
            hanging.sendall(b"GET /v1/search?q=x HTTP/1.1\r\nhost: x\r\n\r\n")
            ends = time.monotonic() + PATIENCE
            while client.get("/stats").json()["in_flight"] != 1:
                assert time.monotonic() < ends
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def _address(base: str) -> tuple[str, int]:
    host, port = base.removeprefix("http://").split(":")
    return host, int(port)


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused("--port", str(port))
    assert text.strip().splitlines() == [
        f"headworks: fake-vendor: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "many"], "'many' is not a rate"),
        (["--mechanism", "leaky"], "'leaky' is not one of bucket, sliding, fixed"),
        (["--latency", "soon"], "'soon' is not a delay"),
        (["--fail-ratio", "2"], "fail_ratio: 2.0 must be a number from 0 to 1"),
        (["--window", "0s"], "'0s' must be longer than 0s"),
        (["--model", "60/min"], "is not a model's limits"),
    ],
)
def test_an_option_that_cannot_be_meant_is_one_sentence(options: list[str], said: str) -> None:
    assert said in refused("--port", "0", *options)


def test_help_shows_an_example() -> None:
    done = CliRunner().invoke(app, ["fake-vendor", "--help"])
    assert done.exit_code == 0
    assert "Example: headworks fake-vendor --limit" in done.output


@pytest.mark.real
async def test_a_client_that_hangs_up_is_seen_over_a_real_socket() -> None:
    """In mid-stream: counted, and the call is no longer in flight."""
    vendor = FakeVendor([limit("100/min")])
    vendor.faults = vendor.faults.changed({"latency": "const:60s"})
    async with serving(vendor) as base, httpx2.AsyncClient(base_url=base, timeout=PATIENCE) as client:
        async with client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
            assert answer.status_code == 200
            assert vendor.ledger.in_flight == 1
        async with asyncio.timeout(PATIENCE):
            while vendor.ledger.in_flight:  # noqa: ASYNC110  # polled under a deadline
                await asyncio.sleep(0.01)
    assert vendor.ledger.streams_closed_early == 1


@pytest.mark.real
@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_dropped_on_purpose_breaks_off_over_a_real_socket(stream: bool) -> None:
    vendor = FakeVendor()
    vendor.faults = vendor.faults.changed({"disconnect": 2})
    async with serving(vendor) as base, httpx2.AsyncClient(base_url=base, timeout=PATIENCE) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1/chat/completions", json=BODY | {"stream": stream})
    assert vendor.ledger.in_flight == vendor.ledger.streams_closed_early == 0


@pytest.mark.real
async def test_a_port_in_use_is_told_to_embedders_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = serving(FakeVendor(), port=taken.getsockname()[1])
        with pytest.raises(PortTaken, match="cannot listen on 127"):
            await busy.__aenter__()


@pytest.mark.real
async def test_decisions_are_exact_over_real_sockets() -> None:
    """Two hundred calls at once against a hundred."""
    vendor = FakeVendor([limit("100/h", mechanism="sliding")])
    vendor.faults = vendor.faults.changed({"arrival_jitter": "0:20ms"})
    async with serving(vendor) as base, httpx2.AsyncClient(base_url=base, timeout=PATIENCE) as client:
        answers = await asyncio.gather(*(client.get("/v1/search?q=x") for _ in range(200)))
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(429)) == (100, 100)
    assert (vendor.ledger.accepted, vendor.ledger.rejected["requests"]) == (100, 100)
