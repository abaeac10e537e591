"""What the three paths say on the service's own port, and to whom."""

from __future__ import annotations

import ipaddress
import json
import random
from typing import Any

import pytest

from headworks.health import Health, Pages, Probes
from headworks.policy.settings import HealthSettings
from headworks.telemetry import Telemetry

INSIDE = "10.1.2.3"


def health() -> Health:
    return Health(
        HealthSettings(),
        full_for=lambda: 0.0,
        permit=None,
        facts=lambda: {"pod": "pod-1"},
        telemetry=Telemetry(),
        rng=random.Random(1),
    )


async def probe(
    readiness: Health, path: str, *, client: Any = (INSIDE, 1), **scope: Any
) -> tuple[int, bytes]:
    """Status and body of a probe; status 0 when the application was reached."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 0})
        sent.append({"body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a probe receives nothing")

    pages = Pages(readiness, metrics=lambda: ("text/plain", b"numbers"))
    probes = Probes(app, pages, allow=lambda: [ipaddress.ip_network("10.0.0.0/8")])
    asked = {"type": "http", "path": path, "method": "GET", "headers": [], "client": client} | scope
    await probes(asked, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_probes_are_answered_by_exact_path_and_everything_else_passes() -> None:
    pod = health()
    assert await probe(pod, "/health") == (200, b'{"status":"ok"}')
    status, body = await probe(pod, "/ready")
    assert (status, json.loads(body)["reasons"]) == (503, ["starting"])
    pod.serve()
    assert (await probe(pod, "/ready"))[0] == 200
    assert await probe(pod, "/metrics") == (200, b"numbers")
    assert (await probe(pod, "/health", method="POST"))[0] == 405
    assert (await probe(pod, "/api/health", root_path="/api"))[0] == 200
    for path in ("/health/", "/healthy", "/HEALTH", "/x/ready", ""):
        assert (await probe(pod, path))[0] == 0
    assert (await probe(pod, "/health", type="websocket"))[0] == 0


@pytest.mark.parametrize(
    "outside",
    [
        {"client": ("203.0.113.7", 1)},
        {"client": ("2001:db8::1", 1)},
        {"client": ("11.0.0.1", 1)},
        {"client": None},
        {"client": ("testclient", 1)},
        {"client": (INSIDE, 1), "headers": [(b"x-forwarded-for", b"10.0.0.9")]},
        {"client": ("127.0.0.1", 1), "headers": [(b"forwarded", b"for=127.0.0.1")]},
        {"client": ("127.0.0.1", 1), "headers": [(b"host", b"x"), (b"x-real-ip", b"127.0.0.1")]},
    ],
    ids=str,
)
async def test_to_those_outside_there_are_no_metrics_and_ready_is_yes_or_no(outside: Any) -> None:
    """Strangers, the nameless, and everybody whom a proxy passed on, whatever its address."""
    pod = health()
    assert await probe(pod, "/ready", **outside) == (503, b'{"ready": false}')
    pod.serve()
    assert await probe(pod, "/ready", **outside) == (200, b'{"ready": true}')
    assert (await probe(pod, "/health", **outside))[0] == 200
    for method in ("GET", "HEAD", "POST"):
        assert await probe(pod, "/metrics", method=method, **outside) == (404, b'{"detail":"Not Found"}')


@pytest.mark.parametrize("address", [INSIDE, "127.0.0.1", "::1", "::ffff:10.1.2.3", "::ffff:127.0.0.1"])
async def test_those_inside_see_metrics_and_reasons(address: str) -> None:
    """The networks of the policy, and this machine."""
    pod = health()
    assert await probe(pod, "/metrics", client=(address, 1)) == (200, b"numbers")
    assert b"starting" in (await probe(pod, "/ready", client=(address, 1)))[1]
