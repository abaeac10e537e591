"""The ingress-nginx target, for clusters that still have it: an Ingress and the controller's ConfigMap.

The annotations `limit-rps` and `limit-connections` count per client address and per controller replica,
so no annotation makes a ceiling for everybody. The zones therefore stand in the controller's ConfigMap
(snippets there are the administrator's, and not gated), and the limits in every location: a location
that has a `limit_req` of its own inherits none. They hold for every host the controller serves.
"""

from __future__ import annotations

from typing import Any

from headworks.gateway import shares
from headworks.gateway.nginx import burst_text, rate_text
from headworks.manifest import Manifest, Said
from headworks.policy.settings import Policy

WARNING = (
    "ingress-nginx is retired: its last releases are of 2026-03-19, and nobody mends what is found "
    "since. Render gateway-api instead where you can."
)
HEAD = f"""Rendered by headworks from the policy; edit the policy instead.
LEGACY: {WARNING}"""
CONTROLLER = "ingress-nginx"
"""The namespace and the ConfigMap's prefix, as the controller's own chart names them."""


def render(policy: Policy) -> list[Manifest]:
    """The controller's ConfigMap, and the Ingress."""
    return [_controller(policy), _ingress(policy)]


def _controller(policy: Policy) -> Manifest:
    gateway, (idle, why) = policy.gateway, shares.idle(policy)
    line = gateway.max_header // 4
    wait = f"{max(1, round(policy.request_timeout))}"
    data: dict[str, Any] = {
        "http-snippet": _zones(policy),
        "location-snippet": _limits(policy),
        "limit-req-status-code": "429",
        "limit-conn-status-code": "429",
        "max-worker-connections": Said(
            str(2 * gateway.connections), "2 × gateway.connections: the client's and the pod's"
        ),
        "client-header-timeout": Said(_whole(gateway.header_timeout), "gateway.header_timeout"),
        "client-body-timeout": Said(_whole(gateway.body_timeout), "gateway.body_timeout"),
        "client-header-buffer-size": Said(str(min(1024, line)), "gateway.max_header, 1024 at most"),
        "large-client-header-buffers": Said(f"4 {line}", "gateway.max_header / 4"),
        "proxy-body-size": Said(str(gateway.max_body), "gateway.max_body"),
        "proxy-connect-timeout": Said(_whole(gateway.connect_timeout), "gateway.connect_timeout"),
        "proxy-read-timeout": Said(wait, "gateway.request_timeout"),
        "proxy-send-timeout": Said(wait, "gateway.request_timeout"),
        "proxy-buffering": "off",
        "proxy-request-buffering": "on",
        "proxy-next-upstream": "error timeout",
        "proxy-next-upstream-tries": Said(str(gateway.attempts), "gateway.attempts"),
        "upstream-keepalive-timeout": Said(f"{max(1, int(idle))}", why),
        "generate-request-id": "true",
        "use-forwarded-headers": "true" if gateway.trust else "false",
    }
    if gateway.trust:
        networks = ",".join(map(str, gateway.trust))
        data["proxy-real-ip-cidr"] = Said(networks, "gateway.trust")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{CONTROLLER}-controller", "namespace": CONTROLLER},
        "data": data,
    }


def _zones(policy: Policy) -> str:
    own, everybody = shares.per_ip(policy), shares.total(policy)
    return "\n".join(
        [
            "# One client: an IPv4 address, or an IPv6 /64, which is what one subscriber gets.",
            "map $binary_remote_addr $headworks_client {",
            '    "~(?s)^(?<headworks_network>.{8}).{8}$" $headworks_network;',
            "    default $binary_remote_addr;",
            "}",
            f"# {own.why}",
            f"limit_req_zone $headworks_client zone=headworks_ip:16m rate={rate_text(own)};",
            f"# {everybody.why}",
            f"limit_req_zone $server_name zone=headworks_total:1m rate={rate_text(everybody)};",
            "limit_conn_zone $headworks_client zone=headworks_connections:16m;",
            "limit_req_log_level info;",
            "limit_conn_log_level info;",
            "",
        ]
    )


def _limits(policy: Policy) -> str:
    own, everybody = shares.per_ip(policy), shares.total(policy)
    connections, why = shares.per_ip_connections(policy)
    return "\n".join(
        [
            f"# {why}",
            f"limit_conn headworks_connections {connections};",
            f"# {own.why}",
            f"limit_req zone=headworks_ip{burst_text(own)} nodelay;",
            f"# {everybody.why}",
            f"limit_req zone=headworks_total{burst_text(everybody)} nodelay;",
            *_shadow(policy),
            "# What pods say to probes and scrapers is not for the world.",
            f'if ($uri ~ "{shares.HIDDEN}") {{ return 404; }}',
            "",
        ]
    )


def _shadow(policy: Policy) -> list[str]:
    """Nothing is refused for its rate; the controller's log says what would have been."""
    if policy.gateway.mode == "enforce":
        return []
    return ["# gateway.mode", "limit_req_dry_run on;", "limit_conn_dry_run on;"]


def _ingress(policy: Policy) -> Manifest:
    name, host = policy.service.name, policy.gateway.host
    port = {"number": Said(policy.deploy.port, "deploy.port")}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": port}}}
    rule: dict[str, Any] = {"host": Said(host, "gateway.host")} if host else {}
    spec: dict[str, Any] = {"ingressClassName": "nginx", "rules": [{**rule, "http": {"paths": [path]}}]}
    if policy.gateway.tls_secret is not None:
        secret = {"secretName": Said(policy.gateway.tls_secret, "gateway.tls_secret")}
        spec["tls"] = [{"hosts": [host], **secret} if host else secret]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": name,
            "namespace": policy.namespace,
            "labels": {"app.kubernetes.io/name": name},
        },
        "spec": spec,
    }


def _whole(seconds: float) -> str:
    """Whole seconds, which is all this controller reads."""
    return str(max(1, round(seconds)))
