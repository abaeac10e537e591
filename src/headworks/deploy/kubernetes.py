"""The kubernetes target: everything that runs the pods, as plain manifests and as a Kustomize base.

The same policy gives the same files, byte for byte. The policy itself travels in an immutable ConfigMap
named by its content, so a changed policy is a new rollout and never a change under running pods.
"""

from __future__ import annotations

import hashlib
from typing import Any

from headworks.deploy import monitoring, network, valkey
from headworks.deploy.pod import FILE, labels, meta, pod_spec
from headworks.manifest import Manifest, Said, files, yaml
from headworks.policy.settings import Policy

HEAD = """Rendered by headworks from the policy; edit the policy instead.
Needs Kubernetes 1.27 or newer."""
ALL = "manifests.yaml"
"""Every object in one file, in the order in which they can be applied."""


def render(policy: Policy, source: str) -> dict[str, str]:
    """The files by name: `manifests.yaml`, `base/`, `overlays/production/` and `monitoring/`.

    source  the policy file's text, as the pods will read it
    """
    objects = manifests(policy, source)
    base = files(objects, HEAD)
    rendered = {ALL: yaml(objects, HEAD)}
    rendered |= {f"base/{name}": text for name, text in base.items()}
    rendered["base/kustomization.yaml"] = _kustomization({"resources": sorted(base)})
    watched = files(monitoring.manifests(policy), HEAD)
    rendered |= {f"monitoring/{name}": text for name, text in watched.items()}
    rendered["monitoring/kustomization.yaml"] = _kustomization({"resources": sorted(watched)})
    rendered["overlays/production/kustomization.yaml"] = _overlay(policy)
    return rendered


def manifests(policy: Policy, source: str) -> list[Manifest]:
    """The objects, in the order in which they can be applied; only kinds every cluster knows."""
    config = _config_map(policy, source)
    found = [_namespace(policy), _account(policy), config]
    if policy.deploy.store_image is not None:
        found += valkey.manifests(policy)
    found += [_deployment(policy, str(config["metadata"]["name"])), _service(policy), _budget(policy)]
    if policy.deploy.max_replicas is not None:
        found.append(_autoscaler(policy, policy.deploy.max_replicas))
    return [*found, *network.manifests(policy)]


def _kustomization(content: dict[str, Any]) -> str:
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return yaml([{**kind, **content}], HEAD.splitlines()[0])


def _overlay(policy: Policy) -> str:
    """What one environment adds: the monitoring, and the image by digest once it is known."""
    name, _, digest = policy.deploy.image.partition("@")
    stem = name if ":" not in name.rpartition("/")[2] else name.rpartition(":")[0]
    pinned: dict[str, Any] = {"name": Said(stem, "deploy.image")}
    tag = name.rpartition(":")[2] if stem != name else "latest"
    pinned |= {"digest": digest} if digest else {"newTag": Said(tag, "deploy.image")}
    return _kustomization({"resources": ["../../base", "../../monitoring"], "images": [pinned]})


def _namespace(policy: Policy) -> Manifest:
    standard = "pod-security.kubernetes.io/enforce"
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": Said(policy.namespace, "deploy.namespace"),
            "labels": {**labels(policy), standard: "restricted"},
        },
    }


def _account(policy: Policy) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(policy),
        "automountServiceAccountToken": False,
    }


def _config_map(policy: Policy, source: str) -> Manifest:
    content = hashlib.sha256(source.encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta(policy, suffix=f"-policy-{content}"),
        "immutable": True,
        "data": {FILE: source},
    }


def _deployment(policy: Policy, config_map: str) -> Manifest:
    spec: dict[str, Any] = {}
    if policy.deploy.max_replicas is None:  # otherwise the number is the autoscaler's
        spec["replicas"] = Said(policy.deploy.replicas, "deploy.replicas")
    surge = {
        "maxUnavailable": Said(0, "fixed: a rollout takes no pod away before the next is ready"),
        "maxSurge": Said(1, "fixed: one at a time"),
    }
    spec |= {
        "revisionHistoryLimit": Said(5, "fixed: rollouts that can be undone"),
        "minReadySeconds": Said(5, "fixed: a pod that fails at once stops the rollout"),
        "selector": {"matchLabels": labels(policy)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
        "template": {"metadata": {"labels": labels(policy)}, "spec": pod_spec(policy, config_map)},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(policy), "spec": spec}


def _service(policy: Policy) -> Manifest:
    port = {"name": "http", "port": Said(policy.deploy.port, "deploy.port"), "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(policy),
        "spec": {"type": "ClusterIP", "selector": labels(policy), "ports": [port]},
    }


def _budget(policy: Policy) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(policy),
        "spec": {
            "maxUnavailable": Said(1, "fixed: nodes are drained one pod at a time"),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels(policy)},
        },
    }


def _autoscaler(policy: Policy, most: int) -> Manifest:
    """In-flight requests stand still once pods shed, so the rate of shedding is asked, too."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": policy.service.name}
    in_flight = max(1, int(policy.deploy.scale_at * policy.admission.max_in_flight))
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": meta(policy),
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": Said(policy.deploy.replicas, "deploy.replicas"),
            "maxReplicas": Said(most, "deploy.max_replicas"),
            "metrics": [
                _metric(
                    monitoring.IN_FLIGHT,
                    Said(str(in_flight), "deploy.scale_at × admission.max_in_flight"),
                ),
                _metric(monitoring.SHED_RATE, Said("1", "fixed: a pod that sheds needs help")),
            ],
            "behavior": {
                "scaleUp": _pace(0, 100, 15, "fixed: doubles at once while there is load"),
                "scaleDown": _pace(300, 10, 60, "fixed: slowly, and only after five quiet minutes"),
            },
        },
    }


def _metric(name: str, average: Said) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": average}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": target}}


def _pace(window: int, percent: int, period: int, why: str) -> dict[str, Any]:
    step = {"type": "Percent", "value": Said(percent, why), "periodSeconds": Said(period, why)}
    return {"stabilizationWindowSeconds": Said(window, why), "policies": [step]}
