"""A Valkey beside the pods: one primary that keeps nothing. Its counters are worth nothing after a
restart, and pods that miss it keep to their shares; whoever wants more runs a managed one.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from headworks.deploy.network import store_port
from headworks.deploy.pod import confined, labels, meta, nobody, quantity, scratch
from headworks.manifest import Manifest, Said
from headworks.policy.settings import Policy

DATA_SHARE = 0.75
"""The part of its memory that data may take; the rest is for connections and scripts."""


def manifests(policy: Policy) -> list[Manifest]:
    """Deployment, Service, and who may reach it: the pods alone."""
    name = {**meta(policy, "store"), "name": service_name(policy)}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": name, "spec": _spec(policy)},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": name,
            "spec": {
                "type": "ClusterIP",
                "selector": labels(policy, "store"),
                "ports": [{"name": "valkey", "port": Said(store_port(policy), "store.url")}],
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": name,
            "spec": {
                "podSelector": {"matchLabels": labels(policy, "store")},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {
                        "from": [{"podSelector": {"matchLabels": labels(policy)}}],
                        "ports": [{"protocol": "TCP", "port": Said(store_port(policy), "store.url")}],
                    }
                ],
                "egress": [],
            },
        },
    ]


def service_name(policy: Policy) -> str:
    """The name by which `store.url` asks for it: a Service of the pods' own namespace."""
    store = policy.store
    host = urlsplit(store.url.name).hostname if store is not None else None
    return (host or "valkey").partition(".")[0]


def _spec(policy: Policy) -> dict[str, Any]:
    return {
        "replicas": Said(1, "fixed: one primary; what it holds may be lost"),
        "selector": {"matchLabels": labels(policy, "store")},
        "strategy": {"type": "Recreate"},
        "template": {
            "metadata": {"labels": labels(policy, "store")},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "serviceAccountName": policy.service.name,
                "securityContext": nobody(),
                "containers": [_container(policy)],
                "volumes": [scratch()],
            },
        },
    }


def _container(policy: Policy) -> dict[str, Any]:
    data = int(policy.deploy.store_memory * DATA_SHARE)
    port = store_port(policy)
    memory = Said(quantity(policy.deploy.store_memory), "deploy.store_memory")
    disk = Said("64Mi", "fixed: logs and scratch space")
    asks = {
        "tcpSocket": {"port": Said(port, "store.url")},
        "periodSeconds": Said(5, "fixed: it restarts in seconds"),
        "timeoutSeconds": Said(2, "fixed: it answers in microseconds"),
    }
    return {
        "name": "valkey",
        "image": Said(policy.deploy.store_image, "deploy.store_image"),
        "imagePullPolicy": "Always",
        "args": [
            *("--port", Said(str(port), "store.url")),
            *("--save", "", "--appendonly", "no", "--dir", "/tmp"),
            *("--maxmemory", Said(str(data), f"{DATA_SHARE} × deploy.store_memory")),
            *("--maxmemory-policy", "volatile-ttl"),
            *("--protected-mode", "no"),
        ],
        "ports": [{"name": "valkey", "containerPort": Said(port, "store.url")}],
        "readinessProbe": {**asks, "failureThreshold": Said(2, "fixed: pods do without it meanwhile")},
        "livenessProbe": {**asks, "failureThreshold": Said(6, "fixed: half a minute of silence")},
        "resources": {
            "requests": {
                "cpu": Said("250m", "fixed: a quarter of a core"),
                "memory": memory,
                "ephemeral-storage": disk,
            },
            "limits": {
                "cpu": Said("1", "fixed: it runs on one thread"),
                "memory": memory,
                "ephemeral-storage": disk,
            },
        },
        "securityContext": confined(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
