"""Layer 1 bites: each protection, taken out of the rendered files, makes its own test fail.

The other layers' rows are in `tests/test_layers_bite.py`; these run the real nginx and Envoy.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.gateway import test_gateway_moves as moves
from tests.gateway import test_gateway_real as real
from tests.gateway import test_gateway_websockets as websockets

from headworks.gateway import envoy, nginx

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
        moves.test_a_pod_that_says_no_is_left_at_its_first_answers,
    ),
    Row(
        "uploads in time",
        "nginx.conf",
        r"js_access edge.upload;",
        "",
        real.test_a_head_or_a_body_that_drips_in_is_ended_as_a_whole,
    ),
    Row(
        "another pod for a read",
        "nginx.conf",
        r"proxy_next_upstream error timeout;",
        "proxy_next_upstream off;",
        moves.test_a_pod_killed_outright_costs_no_read,
    ),
    Row(
        "panic",
        "edge.js",
        r"const PANIC = [^;]*;",
        "const PANIC = 0;",
        moves.test_when_too_few_are_ready_all_that_answer_are_sent_to,
    ),
    Row(
        "a websocket's own time",
        "nginx.conf",
        r"proxy_read_timeout 30000ms;",
        "proxy_read_timeout 1s;",
        websockets.test_a_websocket_outlives_the_times_of_a_request,
    ),
    Row(
        "websockets alone may upgrade",
        "nginx.conf",
        r"~\*\^websocket\$ websockets;\n *default pods;",
        "default websockets;",
        websockets.test_no_other_upgrade_passes,
    ),
    Row(
        "a websocket's own time",
        "listener.yaml",
        r"idle_timeout: 30s",
        "idle_timeout: 1s",
        websockets.test_a_websocket_outlives_the_times_of_a_request,
    ),
    Row(
        "more than twenty addresses",
        "listener.yaml",
        r"max_dynamic_descriptors: \d+",
        "max_dynamic_descriptors: 20",
        real.test_many_addresses_are_each_held_to_their_own_rate,
    ),
    Row(
        "total rate",
        "listener.yaml",
        r"(?s)(stat_prefix: everybody.*?max_tokens): \d+",
        r"\1: 100000",
        real.test_all_addresses_together_get_the_total,
    ),
    Row(
        "body size",
        "listener.yaml",
        r"max_request_bytes: \d+",
        "max_request_bytes: 4000000000",
        real.test_oversized_bodies_and_heads_end_at_the_gateway,
    ),
    Row(
        "uploads in time",
        "listener.yaml",
        r"\n *request_timeout: [^\n]*",
        "",
        real.test_a_head_or_a_body_that_drips_in_is_ended_as_a_whole,
    ),
    Row(
        "forwarding headers",
        "listener.yaml",
        r"OVERWRITE_IF_EXISTS_OR_ADD",
        "ADD_IF_ABSENT",
        real.test_a_spoofed_forwarding_header_neither_reaches_the_pod_nor_buys_a_rate,
    ),
    Row(
        "another pod for a read",
        "listener.yaml",
        r"num_retries: \d+",
        "num_retries: 0",
        moves.test_a_pod_killed_outright_costs_no_read,
    ),
    Row(
        "ready pods only",
        "cluster.yaml",
        r"http_health_check:\n *path: /ready",
        "http_health_check: {path: /ready, expected_statuses: [{start: 200, end: 600}]}",
        moves.test_a_pod_that_says_no_is_left_at_its_first_answers,
    ),
    Row(
        "a file of endpoints that is obeyed",
        "cluster.yaml",
        r"ignore_health_on_host_removal: true",
        "ignore_health_on_host_removal: false",
        moves.test_a_pod_that_joins_or_leaves_the_file_is_seen_at_once,
    ),
    Row(
        "panic",
        "cluster.yaml",
        r"(healthy_panic_threshold:\n *value): \d+",
        r"\1: 0",
        moves.test_when_too_few_are_ready_all_that_answer_are_sent_to,
    ),
]


def _product(row: Row) -> str:
    return "envoy" if row.file.endswith(".yaml") else "nginx"


@pytest.mark.parametrize(
    ("row", "open_edge"),
    [pytest.param(row, _product(row), id=f"{_product(row)}: {row.protection}") for row in ROWS],
    indirect=["open_edge"],
)
async def test_without_the_protection_its_test_fails(
    row: Row, open_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = {"nginx": nginx, "envoy": envoy}[_product(row)]
    render = product.render

    def without(*args: Any, **options: Any) -> dict[str, str]:
        files = render(*args, **options)
        text, found = re.subn(row.pattern, row.instead, files[row.file])
        assert found, f"{row.protection} was not there to be taken out"
        return {**files, row.file: text}

    monkeypatch.setattr(product, "render", without)
    for module in (moves, real):
        monkeypatch.setattr(module, "PATIENCE", 3.0)  # what must not happen need not be waited for long
    with pytest.raises((AssertionError, TimeoutError)):
        await row.scenario(open_edge)
