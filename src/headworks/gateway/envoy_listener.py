"""What Envoy does with a request before a pod hears of it: listener, filters, routes, refusals."""

from __future__ import annotations

import math
from typing import Any

from headworks.gateway import shares
from headworks.gateway.answers import PREFIX, Answer, answers
from headworks.gateway.envoy_words import EXTENSIONS, bucket, seconds
from headworks.gateway.shares import Address
from headworks.manifest import Said
from headworks.policy.settings import Policy

CLUSTER = "pods"
HEALTH = PREFIX + "gateway-health"
"""The gateway's own health: 200 while it has a ready pod."""
ADDRESSES = 65_536
"""Client addresses counted at once; when there are more, those longest unseen are forgotten."""
_HTTP = f"{EXTENSIONS}filters.http."


def listener(policy: Policy, listen: Address) -> dict[str, Any]:
    """The one listener, with everything that stands in a request's way, in order."""
    manager = {
        "@type": f"{EXTENSIONS}filters.network.http_connection_manager.v3.HttpConnectionManager",
        **_manager(policy),
    }
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "edge",
        "address": {"socket_address": {"address": listen.host, "port_value": listen.port}},
        "per_connection_buffer_limit_bytes": Said(32768, "fixed: a slow reader holds no more than this"),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _manager(policy: Policy) -> dict[str, Any]:
    gateway = policy.gateway
    return {
        "stat_prefix": "edge",
        **_client(policy),
        "early_header_mutation_extensions": [_nothing_of_the_clients()],
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
        "max_request_headers_kb": Said(math.ceil(gateway.max_header / 1024), "gateway.max_header"),
        "request_headers_timeout": Said(seconds(gateway.header_timeout), "gateway.header_timeout"),
        "request_timeout": Said(seconds(gateway.upload_timeout), "gateway.upload_timeout"),
        "stream_idle_timeout": Said(seconds(policy.request_timeout), "gateway.request_timeout"),
        "common_http_protocol_options": {
            "idle_timeout": Said("60s", "fixed: a client's idle connection"),
        },
        "http2_protocol_options": {
            "max_concurrent_streams": Said(100, "fixed: of one connection"),
            "initial_stream_window_size": Said(65536, "fixed: bounds what waits for a slow pod"),
            "initial_connection_window_size": Said(1048576, "fixed: the same, for a connection"),
        },
        "route_config": _routes(policy),
        "local_reply_config": {"mappers": _mappers(policy)},
        "http_filters": _filters(policy),
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}],
    }


def _client(policy: Policy) -> dict[str, Any]:
    """Who the client is. Forwarding headers count only from the networks of `gateway.trust`."""
    if not policy.gateway.trust:
        return {"use_remote_address": True}
    networks = [
        {
            "address_prefix": str(network.network_address),
            "prefix_len": Said(network.prefixlen, "gateway.trust"),
        }
        for network in policy.gateway.trust
    ]
    kind = f"{EXTENSIONS}http.original_ip_detection.xff.v3.XffConfig"
    config = {"@type": kind, "xff_trusted_cidrs": {"cidrs": networks}, "skip_xff_append": True}
    name = "envoy.http.original_ip_detection.xff"
    return {"original_ip_detection_extensions": [{"name": name, "typed_config": config}]}


def _nothing_of_the_clients() -> dict[str, Any]:
    """Envoy's own headers steer it; a client's are taken off before anything reads them."""
    mutations = [
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
        {"remove": "forwarded"},
        {"remove": "x-real-ip"},
    ]
    kind = f"{EXTENSIONS}http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {"@type": kind, "mutations": mutations},
    }


def _filters(policy: Policy) -> list[dict[str, Any]]:
    own, everybody = shares.per_ip(policy), shares.total(policy)
    one = {"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}
    per_address = {
        "rate_limits": [{"actions": [Said(one, "an IPv4 address, or what one IPv6 subscriber gets")]}],
        "descriptors": [
            {"entries": [{"key": "masked_remote_address"}], "token_bucket": bucket(own)},
        ],
        "max_dynamic_descriptors": Said(ADDRESSES, "fixed: the default of 20 lets everybody through"),
        "always_consume_default_token_bucket": False,
        "token_bucket": {
            "max_tokens": Said(1_000_000, "fixed: never asked, every request has an address"),
            "tokens_per_fill": Said(1_000_000, "fixed: never asked"),
            "fill_interval": Said("1s", "fixed: never asked"),
        },
    }
    return [
        _filter("health_check", "health_check.v3.HealthCheck", _health()),
        _rate_limit(policy, "address", per_address),
        _rate_limit(policy, "everybody", {"token_bucket": bucket(everybody)}),
        _filter(
            "buffer",
            "buffer.v3.Buffer",
            {"max_request_bytes": Said(policy.gateway.max_body, "gateway.max_body")},
        ),
        _filter("router", "router.v3.Router", {"suppress_envoy_headers": True}),
    ]


def _websockets(policy: Policy, retry_on: str) -> dict[str, Any]:
    """Handshakes pass the same filters, and so the same counts; only the one that waits for a body's end
    is off, since a websocket has none. Other routes let nobody upgrade."""
    method = {"name": ":method", "string_match": {"exact": "GET"}}
    upgrade = {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}
    connection = {"name": "connection", "string_match": {"contains": "upgrade", "ignore_case": True}}
    silent = Said(seconds(policy.gateway.websocket_idle), "gateway.websocket_idle")
    return {
        "match": {"prefix": "/", "headers": [method, upgrade, connection]},
        "route": {
            **_to_pods(policy, retry_on, silent),
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        },
        "typed_per_filter_config": {
            "envoy.filters.http.buffer": {"@type": f"{_HTTP}buffer.v3.BufferPerRoute", "disabled": True}
        },
    }


def _health() -> dict[str, Any]:
    path = {"name": ":path", "string_match": {"exact": HEALTH}}
    some = {CLUSTER: {"value": Said(1, "fixed: percent; one ready pod will do")}}
    return {
        "pass_through_mode": False,
        "headers": [path],
        "cluster_min_healthy_percentages": some,
    }


def _rate_limit(policy: Policy, name: str, limit: dict[str, Any]) -> dict[str, Any]:
    """One limit; in shadow it refuses nothing, and marks for the pods what it would have refused."""
    enforced = policy.gateway.mode == "enforce"
    settings = {
        "stat_prefix": name,
        "filter_enabled": _percent(100, "fixed: always"),
        "filter_enforced": _percent(100 if enforced else 0, "gateway.mode"),
        **limit,
    }
    if not enforced:
        mark = _header(shares.SHADOW.lower(), "rate")
        settings["request_headers_to_add_when_not_enforced"] = [mark]
    return _filter("local_ratelimit", "local_ratelimit.v3.LocalRateLimit", settings, name=name)


def _percent(part: int, why: str) -> dict[str, Any]:
    return {"default_value": {"numerator": Said(part, why), "denominator": "HUNDRED"}}


def _filter(short: str, kind: str, config: dict[str, Any], name: str = "") -> dict[str, Any]:
    full = f"envoy.filters.http.{short}" + (f".{name}" if name else "")
    return {"name": full, "typed_config": {"@type": f"{_HTTP}{kind}", **config}}


def _routes(policy: Policy) -> dict[str, Any]:
    host = policy.gateway.host
    hidden = {"safe_regex": {"regex": shares.HIDDEN}}
    nothing = {"direct_response": {"status": 404}}
    safe = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD|OPTIONS"}}}
    waits = Said(seconds(policy.request_timeout), "gateway.request_timeout")
    lost = "connect-failure,refused-stream,reset-before-request"
    return {
        "name": "edge",
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": Said([host, f"{host}:*"], "gateway.host") if host else ["*"],
                "request_headers_to_add": [
                    _header("x-forwarded-for", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                    _header("x-real-ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                    _header("x-forwarded-host", "%REQ(:AUTHORITY)%"),
                ],
                "routes": [
                    {"match": hidden, **nothing},
                    {"match": {"prefix": PREFIX}, **nothing},
                    _websockets(policy, lost),
                    {
                        "match": {"prefix": "/", "headers": [safe]},
                        "route": _to_pods(policy, f"reset,{lost}", waits),
                    },
                    {"match": {"prefix": "/"}, "route": _to_pods(policy, lost, waits)},
                ],
            }
        ],
    }


def _header(key: str, value: str | Said) -> dict[str, Any]:
    """Written by the gateway, whatever a client wrote there."""
    header = {"key": key, "value": value}
    return {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _to_pods(policy: Policy, retry_on: str, silent: Said) -> dict[str, Any]:
    """An answer may take as long as it likes once it flows; each silence is bounded."""
    others = "envoy.retry_host_predicates.previous_hosts"
    kind = f"{EXTENSIONS}retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "cluster": CLUSTER,
        "timeout": Said("0s", "fixed: event streams are long; idle_timeout bounds each silence"),
        "idle_timeout": silent,
        "retry_policy": {
            "retry_on": retry_on,
            "num_retries": Said(policy.gateway.attempts - 1, "gateway.attempts, less the first"),
            "retry_host_predicate": [{"name": others, "typed_config": {"@type": kind}}],
            # A dead pod has nothing in hand, and so is drawn more often than any other.
            "host_selection_retry_max_attempts": Said(50, "fixed: draws until another pod is found"),
        },
    }


_FLAGS = {"none": ["UH", "NC", "UO"], "late": ["UT", "DT", "SI"]}
_FLAGS["pod"] = ["UF", "UC", "UR", "URX", "UPE"]
_STATUSES = {"limited": [429], "body": [413], "head": [400, 431], "hidden": [404]}


def _mappers(policy: Policy) -> list[dict[str, Any]]:
    """The same problem documents as on every other edge."""
    found = {answer.name: answer for answer in answers(shares.pause(policy))}
    slow = Answer("slow", (408,), "too-slow", "The request took too long to arrive")
    mappers = [_mapper(slow, _status(408), 408)]
    for name, codes in _STATUSES.items():
        mappers += [_mapper(found[name], _status(code), code) for code in codes]
    for name, flags in _FLAGS.items():
        wanted = {"response_flag_filter": {"flags": flags}}
        mappers.append(_mapper(found[name], wanted, found[name].codes[0]))
    return mappers


def _status(code: int) -> dict[str, Any]:
    value = {"default_value": code, "runtime_key": f"headworks.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _mapper(answer: Answer, wanted: dict[str, Any], status: int) -> dict[str, Any]:
    reason = "rate" if answer.name == "limited" else None
    headers = [_header("cache-control", "no-store")]
    if answer.retry_after is not None:
        headers.append(_header("retry-after", Said(str(answer.retry_after), answer.why)))
    return {
        "filter": wanted,
        "status_code": status,
        "headers_to_add": headers,
        "body_format_override": {
            "json_format": answer.problem(status, reason),
            "content_type": "application/problem+json",
        },
    }
