"""The rendered files: deterministic, and every number with the policy field it comes from."""

from __future__ import annotations

import re

import pytest

from headworks.gateway.nginx import Address, render
from headworks.policy.load import parse
from headworks.policy.settings import Policy

PODS = [Address("10.0.0.1", 8000), Address("10.0.0.2", 8000)]


def policy(**gateway: object) -> Policy:
    tables = {
        "schema": 1,
        "service": {"name": "edge", "sla": "60s"},
        "gateway": gateway,
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
    }
    return parse(tables, environ={})


def conf(**gateway: object) -> str:
    return render(policy(**gateway), pods=PODS, port=8080)["nginx.conf"]


def test_the_same_policy_renders_the_same_bytes() -> None:
    assert render(policy(), pods=PODS, port=8080) == render(policy(), pods=PODS, port=8080)


def test_every_number_of_the_policy_stands_with_its_field() -> None:
    text = conf(
        total_rate="1200/s", per_ip_rate="90/s", per_ip_connections=7, max_body="3MiB", body_timeout="7s"
    )
    assert re.search(r"rate=1200r/s; +# gateway.total_rate", text)
    assert re.search(r"rate=90r/s; +# gateway.per_ip_rate", text)
    assert re.search(r"limit_conn headworks_connections 7; +# gateway.per_ip_connections", text)
    assert re.search(r"client_max_body_size 3145728; +# gateway.max_body", text)
    assert re.search(r"client_body_timeout 7000ms; +# gateway.body_timeout", text)
    assert re.search(r"proxy_read_timeout 65000ms; +# .*longer than service.sla", text)


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ("2000/s", "2000r/s"),
        ("90/min", "90r/m"),
        ("600/min", "10r/s"),
        ("10/h", "1r/m"),
        ("3/2s", "90r/m"),
    ],
)
def test_a_rate_is_whole_requests_per_second_or_else_per_minute(written: str, rendered: str) -> None:
    assert f"zone=headworks_ip:16m rate={rendered};" in conf(per_ip_rate=written)


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ("100/s", " burst=99 nodelay"),
        ("100/s burst 5", " burst=4 nodelay"),
        ("100/s burst 1", " nodelay"),
        ("1/s", " burst=1 nodelay"),
    ],
)
def test_a_burst_is_counted_beyond_the_first_request_and_never_queued(
    written: str, rendered: str
) -> None:
    assert f"limit_req zone=headworks_ip{rendered};" in conf(per_ip_rate=written)


def test_no_forwarding_header_is_believed_unless_the_policy_trusts_somebody() -> None:
    assert "set_real_ip_from" not in conf()
    assert "set_real_ip_from 10.1.0.0/16;" in conf(trust=["10.1.0.0/16"])


def test_every_pod_has_its_upstream_with_its_siblings_behind_it() -> None:
    text = conf()
    assert "server 10.0.0.1:8000 max_fails=0;\n        server 10.0.0.2:8000 max_fails=0 backup;" in text
    assert "server 10.0.0.2:8000 max_fails=0;\n        server 10.0.0.1:8000 max_fails=0 backup;" in text


def test_a_gateway_without_pods_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pod"):
        render(policy(), pods=[], port=8080)
