"""The annotations that are often proposed as a total, as the nginx they become: it bounds nothing."""

from __future__ import annotations

import pytest
from bench.edge_stage import gateway, plain_nginx

from bench import annotations

pytestmark = pytest.mark.real


async def burst(running: object, addresses: int, each: int) -> list[int]:
    """How many of each address's requests passed, asked one after the other as fast as they go."""
    async with running as edge:  # type: ignore[attr-defined]
        clients = [await edge.client(f"127.0.6.{n}") for n in range(1, addresses + 1)]
        return [sum([await client.ask() == 200 for _ in range(each)]) for client in clients]


async def test_limit_rps_is_a_limit_of_each_address_and_bounds_nothing_together() -> None:
    """`limit-rps: 10` gives every address 51 at once; ours holds all of them to the total."""

    def conf(port: int, pods: list[object]) -> str:
        return annotations.conf(port=port, pods=pods, rps=10, connections=500, rpm=600)  # type: ignore[arg-type]

    passed = await burst(plain_nginx(conf), addresses=6, each=60)
    assert min(passed) >= 51
    assert sum(passed) >= 6 * 51, "what was meant as ten a second for everybody"
    ours = {"total_rate": "60/h burst 50", "per_ip_rate": "60/h burst 50"}
    for product in ("nginx", "envoy"):
        held = await burst(gateway(product, settings=ours), addresses=6, each=60)
        assert 50 <= sum(held) <= 50 + 2, "the burst, once"
