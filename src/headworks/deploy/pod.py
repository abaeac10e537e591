"""One pod as Kubernetes runs it: the container, its probes, what it may do and what it may use.

A leaving pod needs no `preStop`: told to end, it says so at `/ready` and serves on for
`health.drain_delay` by itself, so that one number decides and not the sum of two.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any

from headworks.manifest import Said
from headworks.policy.settings import Policy

LIVE, READY, METRICS = "/health", "/ready", "/metrics"
"""What a pod answers to those who look after it."""
FOLDER, FILE = "/etc/headworks", "headworks.toml"
"""Where a pod finds its policy."""
USER = 10001
"""A user that exists on no node."""
STARTS_WITHIN = 60
"""Seconds a pod may take until it answers for the first time."""


def probe_port(policy: Policy) -> tuple[int, str]:
    """Where a pod answers probes and metrics, and the policy field that says so."""
    port = policy.management_port
    return (port, "management.port") if port else (policy.deploy.port, "deploy.port")


def ports(policy: Policy) -> list[dict[str, Any]]:
    """The container's ports, by name; the last one is where probes and metrics are answered."""
    found = [{"name": "http", "containerPort": Said(policy.deploy.port, "deploy.port")}]
    port, why = probe_port(policy)
    if port != policy.deploy.port:
        found.append({"name": "management", "containerPort": Said(port, why)})
    return found


def labels(policy: Policy, component: str = "app") -> dict[str, str]:
    """The labels by which objects find the pods."""
    return {
        "app.kubernetes.io/name": policy.service.name,
        "app.kubernetes.io/component": component,
    }


def meta(policy: Policy, component: str = "app", suffix: str = "") -> dict[str, Any]:
    """The metadata of an object that belongs to the service."""
    return {
        "name": policy.service.name + suffix,
        "namespace": policy.namespace,
        "labels": labels(policy, component),
    }


def quantity(size: int) -> str:
    """A size as Kubernetes writes it."""
    for unit, factor in (("Gi", 1024**3), ("Mi", 1024**2), ("Ki", 1024)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def confined() -> dict[str, Any]:
    """What the Restricted pod security standard asks of a container, and a root that nobody writes."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def nobody() -> dict[str, Any]:
    """The same, of a pod."""
    user = Said(USER, "fixed: a user that exists on no node")
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def scratch() -> dict[str, Any]:
    """The one place where a pod may write."""
    return {"name": "tmp", "emptyDir": {"sizeLimit": Said("64Mi", "fixed: scratch space")}}


def pod_spec(policy: Policy, config_map: str) -> dict[str, Any]:
    """The pod's specification."""
    grace = Said(math.ceil(policy.grace), "deploy.grace: drain delay + drain timeout + cleanup")
    volumes: list[dict[str, Any]] = [
        {"name": "policy", "configMap": {"name": config_map}},
        scratch(),
    ]
    secret = _secret_file(policy)
    if secret is not None:
        items = [{"key": secret.name, "path": secret.name}]
        source = {"secretName": f"{policy.service.name}-store", "items": items}
        volumes.append({"name": "store", "secret": source})
    return {
        "serviceAccountName": policy.service.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": nobody(),
        "terminationGracePeriodSeconds": grace,
        "topologySpreadConstraints": [_spread(policy, "zone"), _spread(policy, "hostname")],
        "containers": [_container(policy)],
        "volumes": volumes,
    }


def _container(policy: Policy) -> dict[str, Any]:
    deploy = policy.deploy
    mounts = [
        {"name": "policy", "mountPath": FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    secret = _secret_file(policy)
    if secret is not None:
        mounts.append({"name": "store", "mountPath": str(secret.parent), "readOnly": True})
    return {
        "name": "app",
        "image": Said(deploy.image, "deploy.image"),
        "imagePullPolicy": "Always",
        "args": ["--policy", f"{FOLDER}/{FILE}"],
        "env": _environment(policy),
        "ports": ports(policy),
        **_probes(policy),
        "resources": _resources(policy),
        "securityContext": confined(),
        "volumeMounts": mounts,
    }


def _environment(policy: Policy) -> list[dict[str, Any]]:
    """The pod's name, and the store's address where the policy asks the environment for it."""
    name = {"fieldRef": {"fieldPath": "metadata.name"}}
    found: list[dict[str, Any]] = [{"name": "HEADWORKS_POD", "valueFrom": name}]
    if policy.store is not None and policy.store.url.kind == "env":
        variable = policy.store.url.name
        secret = {"name": f"{policy.service.name}-store", "key": variable}
        found.append({"name": variable, "valueFrom": {"secretKeyRef": secret}})
    return found


def _secret_file(policy: Policy) -> PurePosixPath | None:
    """The file from which the policy reads the store's address, if it does."""
    if policy.store is None or policy.store.url.kind != "file":
        return None
    return PurePosixPath(policy.store.url.name)


def _probes(policy: Policy) -> dict[str, Any]:
    """Liveness only asks whether the event loop turns, and is patient: a restart helps nobody's load."""
    port, why = probe_port(policy)

    def get(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": Said(port, why)}}

    return {
        "startupProbe": {
            **get(LIVE),
            "periodSeconds": Said(1, "fixed: notices a started pod at once"),
            "timeoutSeconds": Said(1, "fixed: /health does nothing"),
            "failureThreshold": Said(STARTS_WITHIN, "fixed: seconds a pod may take to start"),
        },
        "livenessProbe": {
            **get(LIVE),
            "periodSeconds": Said(10, "fixed: a restart takes a minute without an answer"),
            "timeoutSeconds": Said(5, "fixed: longer than any hold-up of the loop that passes"),
            "failureThreshold": Said(6, "fixed: a restart takes a minute without an answer"),
        },
        "readinessProbe": {
            **get(READY),
            "periodSeconds": Said(2, "fixed: the gateway's own check is the fast one"),
            "timeoutSeconds": Said(1, "fixed: /ready does nothing"),
            "failureThreshold": Said(3, "fixed: a single check may get lost"),
            "successThreshold": Said(1, "fixed: a pod says itself when it is ready"),
        },
    }


def _resources(policy: Policy) -> dict[str, Any]:
    memory = Said(quantity(policy.deploy.memory), "deploy.memory")
    disk = Said("128Mi", "fixed: logs and scratch space")
    return {
        "requests": {
            "cpu": Said(f"{round(policy.deploy.cpu * 1000)}m", "deploy.cpu"),
            "memory": memory,
            "ephemeral-storage": disk,
        },
        "limits": {
            "cpu": Said(
                "1", "fixed: one process uses one core; take it out where nobody asks for limits"
            ),
            "memory": memory,
            "ephemeral-storage": disk,
        },
    }


def _spread(policy: Policy, over: str) -> dict[str, Any]:
    key = {"zone": "topology.kubernetes.io/zone", "hostname": "kubernetes.io/hostname"}[over]
    return {
        "maxSkew": Said(1, "fixed: as even as can be"),
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels(policy)},
        "matchLabelKeys": ["pod-template-hash"],
    }
