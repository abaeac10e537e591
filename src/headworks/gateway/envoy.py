"""The Envoy target: a policy becomes a bootstrap, and a file of endpoints that Envoy watches.

Pure data: the same policy and pods give the same files, byte for byte. Needs Envoy ≥ 1.32. Everything
else stands in the bootstrap, so that `envoy --mode validate` sees all of it; `watched` moves listener
and cluster into files of their own, which a running Envoy takes over without dropping a request.

What an address gets comes first, then what everybody gets: two filters, each counting every request
that reaches it. Envoy has no limit of connections per address; `gateway.connections` bounds them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headworks.gateway import envoy_listener, shares
from headworks.gateway.envoy_words import EXTENSIONS, TYPE, seconds
from headworks.gateway.shares import Address
from headworks.manifest import Said, yaml
from headworks.policy.settings import Policy

HEALTH = envoy_listener.HEALTH
HEAD = "Rendered by headworks from the policy; edit the policy instead."
POOL_SHARE, LEAST_RETRIES = 20, 16
"""Retries may be so many percent of the requests in progress, and always so many at once."""
EJECTED = 30
"""Percent of the pods that failed connections may take out."""


def render(
    policy: Policy,
    *,
    pods: Sequence[Address],
    port: int,
    host: str = "127.0.0.1",
    folder: str = ".",
    watched: bool = False,
) -> dict[str, str]:
    """Envoy's files, by name: `bootstrap.yaml` and `endpoints.yaml`; `watched` adds two.

    pods    where the pods listen; at least one
    port    where the gateway listens, on `host` (an address, or "0.0.0.0" for all)
    folder  where the files will lie, as Envoy is to find them
    """
    if not pods:
        raise ValueError("a gateway needs at least one pod")
    listener = envoy_listener.listener(policy, Address(host, port))
    cluster = _cluster(policy, folder)
    files = {"endpoints.yaml": _resource("endpoint.v3.ClusterLoadAssignment", _endpoints(pods))}
    bootstrap: dict[str, Any] = {"node": {"id": policy.service.name, "cluster": policy.service.name}}
    if watched:
        files["listener.yaml"] = _resource("listener.v3.Listener", listener)
        files["cluster.yaml"] = _resource("cluster.v3.Cluster", cluster)
        bootstrap["dynamic_resources"] = {
            "lds_config": _file(folder, "listener.yaml"),
            "cds_config": _file(folder, "cluster.yaml"),
        }
    else:
        bootstrap["static_resources"] = {"listeners": [listener], "clusters": [cluster]}
    bootstrap["overload_manager"] = {"resource_monitors": [_connections(policy)]}
    return {"bootstrap.yaml": yaml([bootstrap], HEAD), **files}


def _file(folder: str, name: str) -> dict[str, Any]:
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _resource(kind: str, resource: dict[str, Any]) -> str:
    return yaml([{"resources": [{"@type": f"{TYPE}config.{kind}", **resource}]}], HEAD)


def _connections(policy: Policy) -> dict[str, Any]:
    kind = "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    most = Said(policy.gateway.connections, "gateway.connections")
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": f"{EXTENSIONS}{kind}",
            "max_active_downstream_connections": most,
        },
    }


def _endpoints(pods: Sequence[Address]) -> dict[str, Any]:
    listed = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": pod.host, "port_value": pod.port}},
            }
        }
        for pod in pods
    ]
    return {"cluster_name": envoy_listener.CLUSTER, "endpoints": [{"lb_endpoints": listed}]}


def _cluster(policy: Policy, folder: str) -> dict[str, Any]:
    gateway, (idle, why) = policy.gateway, shares.idle(policy)
    options = f"{EXTENSIONS}upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": envoy_listener.CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _file(folder, "endpoints.yaml")},
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": Said(seconds(gateway.connect_timeout), "gateway.connect_timeout"),
        "per_connection_buffer_limit_bytes": Said(32768, "fixed: a slow reader holds no more than this"),
        # A pod that left the file must not be sent to until its health check notices.
        "ignore_health_on_host_removal": True,
        "common_lb_config": {
            "healthy_panic_threshold": {"value": Said(round(gateway.panic * 100), "gateway.panic")},
            "update_merge_window": Said("0s", "fixed: two pods that leave together leave at once"),
        },
        "health_checks": [_check(policy)],
        "circuit_breakers": _bounds(policy),
        "outlier_detection": _ejection(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "common_http_protocol_options": {"idle_timeout": Said(seconds(idle), why)},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _check(policy: Policy) -> dict[str, Any]:
    """An answer is believed at once, whatever the threshold says; silence only when it lasts."""
    interval = Said(seconds(policy.gateway.check_interval), "gateway.check_interval")
    return {
        "timeout": Said(seconds(shares.CHECK_TIMEOUT), "fixed: a loop held up longer is away"),
        "interval": interval,
        "no_traffic_interval": interval,
        "no_traffic_healthy_interval": interval,
        "unhealthy_threshold": Said(shares.SILENCES, "fixed: a single check may get lost"),
        "healthy_threshold": Said(1, "fixed: a pod says itself when it is ready"),
        "http_health_check": {"path": "/ready"},
    }


def _bounds(policy: Policy) -> dict[str, Any]:
    """Envoy's own defaults stop at 1024; the pods decide, so the edge stands above all of them."""
    fleet = policy.deploy.max_replicas or policy.deploy.replicas
    most = Said(fleet * policy.admission.server_backstop, "pods × admission.limit_concurrency")
    budget = {
        "budget_percent": {"value": Said(POOL_SHARE, "fixed: retries are a fifth of the load at most")},
        "min_retry_concurrency": Said(LEAST_RETRIES, "fixed: the death of one pod is no storm"),
    }
    bounds = {"max_connections": most, "max_pending_requests": most, "max_requests": most}
    return {"thresholds": [{**bounds, "retry_budget": budget}]}


def _ejection() -> dict[str, Any]:
    """Only connections that fail take a pod out: a pod that sheds with 503 is at work, not sick."""
    never = Said(0, "fixed: what a pod answers is no failure of its own")
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": Said(5, "fixed: refused or reset so often in a row"),
        "enforcing_consecutive_local_origin_failure": Said(100, "fixed: always"),
        "enforcing_local_origin_success_rate": never,
        "enforcing_consecutive_5xx": never,
        "enforcing_consecutive_gateway_failure": never,
        "enforcing_success_rate": never,
        "base_ejection_time": Said("1s", "fixed: the health check knows better soon"),
        "max_ejection_percent": Said(EJECTED, "fixed: the others must carry the load"),
    }
