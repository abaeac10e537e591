"""The gateway-api target: Gateway API v1 objects, and the policies of Envoy Gateway (≥ 1.9.2).

What other implementations call these policies differs; the Gateway and the HTTPRoute are the same for
all of them. Three traps shape what stands here:

- A rule without a selector is a *default* bucket, which requests that match another rule never pay
  into. The total's rule therefore selects every path.
- Buckets are counted per route rule and per proxy: there is one rule, and limits are divided by
  `gateway.replicas`. For the same reason retries cannot differ by method: only requests that no pod has
  seen are offered again.
- Envoy's outlier detection would count a shedding pod's 503 as failures: the active check decides alone.
"""

from __future__ import annotations

import json
from typing import Any

from headworks.gateway import shares
from headworks.gateway.answers import Answer, answers
from headworks.gateway.shares import Share
from headworks.manifest import Manifest, Said
from headworks.policy.settings import Policy

HEAD = """Rendered by headworks from the policy; edit the policy instead.
Needs Gateway API v1.2 and Envoy Gateway 1.9.2 or newer (of the older line 1.8.5): before that, clients
beyond the twentieth address were let through without a limit."""
CLASS = "headworks"
EXTENSION = "gateway.envoyproxy.io/v1alpha1"
STANDARD = "gateway.networking.k8s.io/v1"
HTTP, HTTPS = 80, 443
POOL_SHARE, LEAST_RETRIES = 20, 16
"""Retries may be so many percent of the requests in progress, and always so many at once."""


def render(policy: Policy) -> list[Manifest]:
    """The objects, in the order in which they can be applied."""
    return [
        _class(),
        _proxy(policy),
        _gateway(policy),
        _route(policy),
        _backend(policy),
        _client(policy),
        _hidden(policy),
    ]


def duration(seconds: float) -> str:
    """A duration as Gateway API reads it: whole units, none of more than five digits."""
    whole, rest = divmod(round(seconds * 1000), 1000)
    return "".join([f"{whole}s" if whole or not rest else "", f"{rest}ms" if rest else ""])


def _meta(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.service.name,
        "namespace": policy.namespace,
        "labels": {"app.kubernetes.io/name": policy.service.name},
    }


def _class() -> Manifest:
    return {
        "apiVersion": STANDARD,
        "kind": "GatewayClass",
        "metadata": {"name": CLASS},
        "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
    }


def _proxy(policy: Policy) -> Manifest:
    """As many proxies as the limits are divided by: no autoscaler may move that number."""
    replicas = Said(policy.gateway.replicas, "gateway.replicas")
    provider = {"type": "Kubernetes", "kubernetes": {"envoyDeployment": {"replicas": replicas}}}
    drain = Said(duration(policy.request_timeout), "gateway.request_timeout")
    return {
        "apiVersion": EXTENSION,
        "kind": "EnvoyProxy",
        "metadata": _meta(policy),
        "spec": {"provider": provider, "shutdown": {"drainTimeout": drain}},
    }


def _gateway(policy: Policy) -> Manifest:
    gateway = policy.gateway
    listener: dict[str, Any] = {"name": "http", "protocol": "HTTP"}
    listener["port"] = Said(HTTP, "fixed: HTTP; TLS ends in front of the gateway")
    if gateway.tls_secret is not None:
        secret = {"kind": "Secret", "name": Said(gateway.tls_secret, "gateway.tls_secret")}
        listener = {"name": "https", "protocol": "HTTPS", "port": Said(HTTPS, "fixed: HTTPS")}
        listener["tls"] = {"mode": "Terminate", "certificateRefs": [secret]}
    if gateway.host is not None:
        listener["hostname"] = Said(gateway.host, "gateway.host")
    listener["allowedRoutes"] = {"namespaces": {"from": "Same"}}
    proxy = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": policy.service.name}
    return {
        "apiVersion": STANDARD,
        "kind": "Gateway",
        "metadata": _meta(policy),
        "spec": {
            "gatewayClassName": CLASS,
            "infrastructure": {"parametersRef": proxy},
            "listeners": [listener],
        },
    }


def _route(policy: Policy) -> Manifest:
    """One rule, because each has buckets of its own."""
    pods = {"name": policy.service.name, "port": Said(policy.deploy.port, "deploy.port")}
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [pods],
        "timeouts": {
            "request": Said("0s", "fixed: event streams are long; streamIdleTimeout bounds each silence")
        },
    }
    spec: dict[str, Any] = {"parentRefs": [{"name": policy.service.name}]}
    if policy.gateway.host is not None:
        spec["hostnames"] = [Said(policy.gateway.host, "gateway.host")]
    spec["rules"] = [rule]
    return {"apiVersion": STANDARD, "kind": "HTTPRoute", "metadata": _meta(policy), "spec": spec}


def _of_route(policy: Policy) -> list[dict[str, str]]:
    group = "gateway.networking.k8s.io"
    return [{"group": group, "kind": "HTTPRoute", "name": policy.service.name}]


def _backend(policy: Policy) -> Manifest:
    gateway, (idle, why) = policy.gateway, shares.idle(policy)
    limits = {"rateLimit": {"type": "Local", "local": {"rules": _rules(policy)}}}
    return {
        "apiVersion": EXTENSION,
        "kind": "BackendTrafficPolicy",
        "metadata": _meta(policy),
        "spec": {
            "targetRefs": _of_route(policy),
            # Local limits have no shadow: they are left out until they are meant.
            **(limits if gateway.mode == "enforce" else {}),
            "requestBuffer": {"limit": Said(str(gateway.max_body), "gateway.max_body")},
            "timeout": {
                "tcp": {
                    "connectTimeout": Said(duration(gateway.connect_timeout), "gateway.connect_timeout")
                },
                "http": {
                    "streamIdleTimeout": Said(
                        duration(policy.request_timeout), "gateway.request_timeout"
                    ),
                    "connectionIdleTimeout": Said(duration(idle), why),
                },
            },
            "retry": {
                "numRetries": Said(gateway.attempts - 1, "gateway.attempts, less the first"),
                "retryOn": {"triggers": ["connect-failure", "refused-stream", "reset-before-request"]},
            },
            "circuitBreaker": _bounds(policy),
            "loadBalancer": {"type": "LeastRequest"},
            "healthCheck": _check(policy),
            "responseOverride": [_override(answer) for answer in _answers(policy)],
        },
    }


def _rules(policy: Policy) -> list[dict[str, Any]]:
    """An address first, by IPv4 address or IPv6 network, then everybody."""
    own, everybody = shares.per_ip(policy), shares.total(policy)
    addresses = [
        {"clientSelectors": [{"sourceCIDR": {"type": "Distinct", "value": every}}], "limit": _limit(own)}
        for every in ("0.0.0.0/0", "::/0")
    ]
    all_paths = {"path": {"type": "PathPrefix", "value": "/"}}
    return [*addresses, {"clientSelectors": [all_paths], "limit": _limit(everybody)}]


def _limit(share: Share) -> dict[str, Any]:
    """Whole requests per unit, rounded down; so many may come at once, whatever the burst says."""
    for unit, seconds in (("Second", 1), ("Minute", 60), ("Hour", 3600)):
        if share.per_second * seconds >= 1 or unit == "Hour":
            requests = max(1, int(share.per_second * seconds))
            break
    return {"requests": Said(requests, share.why), "unit": unit}


def _bounds(policy: Policy) -> dict[str, Any]:
    """Envoy's own defaults stop at 1024; the pods decide, so the edge stands above all of them."""
    fleet = policy.deploy.max_replicas or policy.deploy.replicas
    most = Said(fleet * policy.admission.server_backstop, "pods × admission.limit_concurrency")
    return {
        "maxConnections": most,
        "maxPendingRequests": most,
        "maxParallelRequests": most,
        "retryBudget": {
            "percent": {
                "numerator": Said(POOL_SHARE, "fixed: retries are a fifth of the load at most"),
                "denominator": Said(100, "fixed: percent"),
            },
            "minRetryConcurrency": Said(LEAST_RETRIES, "fixed: the death of one pod is no storm"),
        },
    }


def _check(policy: Policy) -> dict[str, Any]:
    timeout = Said(duration(shares.CHECK_TIMEOUT), "fixed: a loop held up longer is away")
    return {
        "panicThreshold": Said(round(policy.gateway.panic * 100), "gateway.panic"),
        "active": {
            "type": "HTTP",
            "interval": Said(duration(policy.gateway.check_interval), "gateway.check_interval"),
            "timeout": timeout,
            "unhealthyThreshold": Said(shares.SILENCES, "fixed: a single check may get lost"),
            "healthyThreshold": Said(1, "fixed: a pod says itself when it is ready"),
            "http": {"path": "/ready"},
        },
    }


def _answers(policy: Policy) -> list[Answer]:
    """Those refusals that Envoy makes by itself."""
    return [answer for answer in answers(shares.pause(policy)) if answer.name not in ("head", "hidden")]


def _override(answer: Answer) -> dict[str, Any]:
    status = answer.codes[0]
    reason = "rate" if answer.name == "limited" else None
    headers: list[dict[str, Any]] = [{"name": "Cache-Control", "value": "no-store"}]
    if answer.retry_after is not None:
        pause = Said(str(answer.retry_after), answer.why)
        headers.append({"name": "Retry-After", "value": pause})
    body = json.dumps(answer.problem(status, reason), separators=(",", ":"))
    return {
        "source": "Local",
        "match": {"statusCodes": [{"type": "Value", "value": status}]},
        "response": {
            "contentType": "application/problem+json",
            "header": {"set": headers},
            "body": {"type": "Inline", "inline": body},
        },
    }


def _client(policy: Policy) -> Manifest:
    gateway = policy.gateway
    target = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "name": policy.service.name,
    }
    wait = Said(duration(policy.request_timeout), "gateway.request_timeout")
    spec: dict[str, Any] = {
        "targetRefs": [target],
        "connection": {
            "bufferLimit": Said("32Ki", "fixed: a slow reader holds no more than this"),
            "connectionLimit": {"value": Said(gateway.connections, "gateway.connections")},
        },
        "timeout": {
            "http": {
                "requestHeadersReceivedTimeout": Said(
                    duration(gateway.header_timeout), "gateway.header_timeout"
                ),
                "requestReceivedTimeout": Said(
                    duration(gateway.upload_timeout), "gateway.upload_timeout"
                ),
                "idleTimeout": Said("60s", "fixed: a client's idle connection"),
                "streamIdleTimeout": wait,
            }
        },
        "http2": {
            "maxConcurrentStreams": Said(100, "fixed: of one connection"),
            "initialStreamWindowSize": Said("64Ki", "fixed: bounds what waits for a slow pod"),
            "initialConnectionWindowSize": Said("1Mi", "fixed: the same, for a connection"),
        },
        "headers": {
            "maxRequestHeaderLimit": Said(str(gateway.max_header), "gateway.max_header"),
            "requestID": "PreserveOrGenerate",
            "earlyRequestHeaders": {"remove": ["forwarded", "x-real-ip", *_unbelieved(policy)]},
        },
        "path": {"escapedSlashesAction": "RejectRequest"},
    }
    if gateway.trust:
        networks = [Said(str(network), "gateway.trust") for network in gateway.trust]
        spec["clientIPDetection"] = {"xForwardedFor": {"trustedCIDRs": networks}}
    return {
        "apiVersion": EXTENSION,
        "kind": "ClientTrafficPolicy",
        "metadata": _meta(policy),
        "spec": spec,
    }


def _unbelieved(policy: Policy) -> list[str]:
    """What only a balancer in front may say, when there is none."""
    return [] if policy.gateway.trust else ["x-forwarded-for", "x-forwarded-host"]


def _hidden(policy: Policy) -> Manifest:
    """Probes and metrics are not for the world. Authentication is hooked in here: jwt, apiKeyAuth."""
    everybody = {"clientCIDRs": ["0.0.0.0/0", "::/0"]}
    path = {"type": "RegularExpression", "value": shares.HIDDEN}
    rule = {"name": "hidden", "action": "Deny", "principal": everybody, "operation": {"path": path}}
    return {
        "apiVersion": EXTENSION,
        "kind": "SecurityPolicy",
        "metadata": _meta(policy),
        "spec": {
            "targetRefs": _of_route(policy),
            "authorization": {"defaultAction": "Allow", "rules": [rule]},
        },
    }
