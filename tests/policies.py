"""The shipped policy, and a family of others: whatever is valid must render into valid files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from headworks.policy.load import parse
from headworks.policy.settings import Policy

SHIPPED = Path(__file__).parents[1] / "examples" / "service" / "headworks.toml"
DIGEST = "@sha256:" + "0123456789abcdef" * 4


def shipped(**tables: dict[str, Any]) -> Policy:
    """The shipped policy with those settings changed, by table."""
    data = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    for table, settings in tables.items():
        data[table] = {**data.get(table, {}), **settings}
    return parse(data, environ={})


def _some(**settings: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=settings)


_rates = st.builds(
    lambda amount, unit, burst: (
        f"{amount}/{unit}" + (f" burst {max(1, amount // burst)}" if burst else "")
    ),
    st.integers(1, 50_000),
    st.sampled_from(["s", "min", "h", "10s"]),
    st.none() | st.integers(1, 10),
)
_networks = st.lists(
    st.sampled_from(["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "0.0.0.0/0"]), max_size=3, unique=True
)
_seconds = st.sampled_from(["100ms", "1500ms", "2s", "59s", "10m"])
_names = st.sampled_from(["a", "prod-1", "x" * 63])
_gateway = _some(
    mode=st.sampled_from(["enforce", "shadow"]),
    total_rate=_rates,
    per_ip_rate=_rates,
    per_ip_connections=st.integers(1, 65_535),
    connections=st.integers(64, 1_000_000),
    replicas=st.integers(1, 1000),
    max_body=st.integers(1, 1024**3),
    max_header=st.integers(2048, 1024**2),
    header_timeout=_seconds,
    body_timeout=_seconds,
    upload_timeout=_seconds,
    connect_timeout=st.sampled_from(["10ms", "1s", "60s"]),
    request_timeout=st.sampled_from(["100ms", "65s", "2h"]),
    attempts=st.integers(1, 5),
    check_interval=st.sampled_from(["100ms", "1s", "60s"]),
    panic=st.sampled_from([0, 0.3, 0.555, 1]),
    trust=_networks,
    host=st.sampled_from(["api.example.org", "a.b"]),
    tls_secret=_names,
)
_deploy = _some(
    image=st.sampled_from(["app:latest", "app", f"registry.example:5000/a/b{DIGEST}"]),
    namespace=_names,
    replicas=st.integers(1, 10_000),
    max_replicas=st.integers(1, 10_000),
    scale_at=st.sampled_from([0.001, 0.7, 1]),
    cpu=st.sampled_from([0.001, 0.5, 1]),
    memory=st.integers(64 * 1024**2, 1024**4),
    store_memory=st.integers(64 * 1024**2, 1024**4),
    store_image=st.just("valkey/valkey:9.1"),
    port=st.integers(1024, 65_535),
    gateway_port=st.integers(1, 65_535),
    grace=st.sampled_from(["1s", "90s", "2h"]),
)
_admission = _some(
    max_in_flight=st.integers(1, 100_000),
    keep_alive=st.sampled_from(["1s", "5s", "1h"]),
    write_stall=_seconds,
)
_stores = st.sampled_from(
    [
        {"url": "valkey://valkey:6379"},
        {"url": "valkeys://cache.prod.example:6380/1"},
        {"url": "valkey+sentinel://a:1,b:2/main"},
        {"url": {"env": "STORE_URL"}},
        {"url": {"file": "/run/secrets/store/url"}},
    ]
)
_vendors = st.dictionaries(
    st.sampled_from(["llm", "search_2"]),
    st.builds(
        lambda url: {"base_url": url, "quota": ["500/min"]},
        st.sampled_from(
            ["https://api.vendor.example/v1", "http://vendor:8080", "https://[2001:db8::1]:8443"]
        ),
    ),
    max_size=2,
)


def _policy(name: str, tables: tuple[dict[str, Any], ...]) -> Policy:
    gateway, deploy, admission, store, vendors = tables
    data = {
        "schema": 1,
        "service": {"name": name},
        "gateway": gateway,
        "deploy": deploy,
        "admission": admission,
        "store": store,
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
        "vendors": vendors,
    }
    return parse(data, environ={})


policies = st.builds(_policy, _names, st.tuples(_gateway, _deploy, _admission, _stores, _vendors))
"""Valid policies; wise or not is no matter here."""
