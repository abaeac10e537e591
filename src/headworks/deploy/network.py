"""Who may talk to the pods, and to whom they may talk. Whatever is not named here is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from headworks.deploy.pod import labels, meta, probe_port
from headworks.manifest import Manifest, Said
from headworks.policy.settings import Policy

PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Networks in which no vendor on the internet answers, and where metadata services do."""
STORE_PORT = 6379


def manifests(policy: Policy) -> list[Manifest]:
    """One policy for the pods, both ways."""
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": meta(policy),
            "spec": {
                "podSelector": {"matchLabels": labels(policy)},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": _in(policy),
                "egress": _out(policy),
            },
        }
    ]


def _in(policy: Policy) -> list[dict[str, Any]]:
    """Requests from the gateway, which asks `/ready` at the same port, and scrapers' questions."""
    deploy, (probes, why) = policy.deploy, probe_port(policy)
    return [
        {
            "from": [_namespace(deploy.gateway_namespace, "deploy.gateway_namespace")],
            "ports": [_port(Said(deploy.port, "deploy.port"))],
        },
        {
            "from": [_namespace(deploy.monitoring_namespace, "deploy.monitoring_namespace")],
            "ports": [_port(Said(probes, why))],
        },
    ]


def _out(policy: Policy) -> list[dict[str, Any]]:
    names = Said(53, "fixed: names")
    dns = {
        "to": [_namespace("kube-system", "fixed: where names are resolved")],
        "ports": [_port(names, "UDP"), _port(names)],
    }
    vendors = {
        "to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}},
            {"ipBlock": {"cidr": "::/0", "except": ["fc00::/7", "fe80::/10"]}},
        ],
        "ports": [_port(Said(port, f"vendors.{name}.base_url")) for port, name in _ports(policy)],
    }
    found: list[dict[str, Any]] = [dns]
    if policy.store is not None:
        found.append(_store(policy))
    return [*found, vendors] if policy.vendors else found


def _ports(policy: Policy) -> list[tuple[int, str]]:
    """The ports at which vendors answer, each with one of those who do."""
    found: dict[int, str] = {}
    for name, vendor in policy.vendors.items():
        parts = urlsplit(vendor.base_url)
        found.setdefault(parts.port or (443 if parts.scheme == "https" else 80), name)
    return sorted(found.items())


def _store(policy: Policy) -> dict[str, Any]:
    """To the Valkey beside the pods, or to one that runs anywhere."""
    port = Said(store_port(policy), "store.url")
    if policy.deploy.store_image is not None:
        return {
            "to": [{"podSelector": {"matchLabels": labels(policy, "store")}}],
            "ports": [_port(port)],
        }
    anywhere = [{"ipBlock": {"cidr": cidr}} for cidr in ("0.0.0.0/0", "::/0")]
    return {"to": anywhere, "ports": [_port(port)]}


def store_port(policy: Policy) -> int:
    """The port in `store.url`; the usual one where the address is a secret or names none."""
    store = policy.store
    if store is None or store.url.kind != "literal":
        return STORE_PORT
    return urlsplit(store.url.name.partition(",")[0]).port or STORE_PORT


def _namespace(name: str, why: str) -> dict[str, Any]:
    named = {"kubernetes.io/metadata.name": Said(name, why)}
    return {"namespaceSelector": {"matchLabels": named}}


def _port(port: Said, protocol: str = "TCP") -> dict[str, Any]:
    return {"protocol": protocol, "port": port}
