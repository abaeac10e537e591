"""Layer 1 bites: each protection, taken out of the rendered files, makes its own test fail.

The other layers' rows are in `tests/test_layers_bite.py`; these run the real nginx.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.gateway import test_gateway_real as real

from headworks.gateway import nginx

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Row:
    """What is taken out of which file, and the test that must notice."""

    protection: str
    file: str
    pattern: str
    instead: str
    scenario: Callable[[Any], Awaitable[None]]


ROWS = [
    Row(
        "rate per address",
        "nginx.conf",
        r"limit_req zone=headworks_ip[^\n]*",
        "",
        real.test_one_address_gets_its_burst_and_then_429,
    ),
    Row(
        "total rate",
        "nginx.conf",
        r"limit_req zone=headworks_total[^\n]*",
        "",
        real.test_all_addresses_together_get_the_total,
    ),
    Row(
        "connections per address",
        "nginx.conf",
        r"limit_conn headworks_connections[^\n]*",
        "",
        real.test_requests_in_progress_per_address_are_bounded,
    ),
    Row(
        "body size",
        "nginx.conf",
        r"client_max_body_size \d+;",
        "client_max_body_size 0;",
        real.test_oversized_bodies_and_heads_end_at_the_gateway,
    ),
    Row(
        "forwarding headers",
        "nginx.conf",
        r"proxy_set_header X-Forwarded-For \$remote_addr;",
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
        real.test_a_spoofed_forwarding_header_neither_reaches_the_pod_nor_buys_a_rate,
    ),
    Row(
        "ready pods only",
        "edge.js",
        r"reply\.status === 200",
        "true",
        real.test_a_pod_that_says_it_is_not_ready_gets_no_more_traffic,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.protection)
async def test_without_the_protection_its_test_fails(
    row: Row, open_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = nginx.render

    def without(*args: Any, **options: Any) -> dict[str, str]:
        files = render(*args, **options)
        text, found = re.subn(row.pattern, row.instead, files[row.file])
        assert found, f"{row.protection} was not there to be taken out"
        return {**files, row.file: text}

    monkeypatch.setattr(nginx, "render", without)
    with pytest.raises(AssertionError):
        await row.scenario(open_edge)
