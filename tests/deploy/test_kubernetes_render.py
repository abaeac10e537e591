"""What the manifests promise: one policy per rollout, probes that cannot kill, room to say goodbye."""

from __future__ import annotations

from typing import Any

from tests.policies import SHIPPED, shipped

from headworks.deploy import kubernetes, pod
from headworks.health import HEALTH, METRICS, READY
from headworks.manifest import plain
from headworks.policy.settings import Policy

SOURCE = SHIPPED.read_text(encoding="utf-8")


def objects(policy: Policy, source: str = SOURCE) -> dict[tuple[str, str], Any]:
    """By kind and name, without comments."""
    found = [plain(manifest) for manifest in kubernetes.manifests(policy, source)]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}


def deployment(policy: Policy, source: str = SOURCE) -> Any:
    return objects(policy, source)["Deployment", "fastapi-app"]["spec"]


def test_the_same_policy_renders_the_same_bytes() -> None:
    assert kubernetes.render(shipped(), SOURCE) == kubernetes.render(shipped(), SOURCE)


def test_a_changed_policy_is_a_new_map_and_so_a_new_rollout() -> None:
    def mounted(source: str) -> str:
        found = objects(shipped(), source)
        name = next(volume for volume in deployment(shipped(), source)["template"]["spec"]["volumes"])
        config = found["ConfigMap", name["configMap"]["name"]]
        assert config["immutable"] is True
        assert config["data"]["headworks.toml"] == source
        return str(config["metadata"]["name"])

    assert mounted(SOURCE) != mounted(SOURCE + "# another\n")


def test_probes_ask_what_the_pod_answers_and_liveness_is_the_patient_one() -> None:
    assert (pod.LIVE, pod.READY, pod.METRICS) == (HEALTH, READY, METRICS)
    container = deployment(shipped())["template"]["spec"]["containers"][0]
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["httpGet"]["path"] == HEALTH != ready["httpGet"]["path"]
    budget = {
        name: p["periodSeconds"] * p["failureThreshold"] for name, p in (("l", live), ("r", ready))
    }
    assert budget["l"] >= 10 * budget["r"] or budget["l"] >= 60


def test_probes_go_where_the_platform_is_answered_and_the_gateway_does_not_reach() -> None:
    policy = shipped(management={"port": 9300}, deploy={"port": 8300})
    container = deployment(policy)["template"]["spec"]["containers"][0]
    assert {container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")} == {
        9300
    }
    gateway, monitoring = objects(policy)["NetworkPolicy", "fastapi-app"]["spec"]["ingress"]
    assert [port["port"] for port in gateway["ports"]] == [8300]
    assert [port["port"] for port in monitoring["ports"]] == [9300]
    alone = deployment(shipped(management={"port": 0}))["template"]["spec"]["containers"][0]
    assert alone["livenessProbe"]["httpGet"]["port"] == 8000


def test_a_leaving_pod_has_the_policys_whole_goodbye() -> None:
    policy = shipped(service={"sla": "90s"}, health={"drain_delay": "7s"})
    spec = deployment(policy)["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 7 + 90 + 5
    assert "lifecycle" not in spec["containers"][0], "the pod itself serves on while it says goodbye"


def test_the_autoscaler_alone_sets_the_number_of_pods() -> None:
    assert deployment(shipped())["replicas"] == 10
    scaled = shipped(deploy={"max_replicas": 30, "scale_at": 0.6})
    assert "replicas" not in deployment(scaled)
    autoscaler = objects(scaled)["HorizontalPodAutoscaler", "fastapi-app"]["spec"]
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (10, 30)
    named = {
        m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in autoscaler["metrics"]
    }
    assert named == {"headworks_in_flight": "60", "headworks_shed_per_second": "1"}


def test_a_store_of_ones_own_is_rendered_and_a_managed_one_only_reached() -> None:
    own = objects(shipped())
    assert ("Service", "valkey") in own
    egress = own["NetworkPolicy", "fastapi-app"]["spec"]["egress"]
    assert {"app.kubernetes.io/name": "fastapi-app", "app.kubernetes.io/component": "store"} in [
        to.get("podSelector", {}).get("matchLabels") for rule in egress for to in rule["to"]
    ]
    managed = shipped(store={"url": "valkeys://cache.prod.example:6380"}, deploy={"store_image": None})
    assert not [name for kind, name in objects(managed) if name == "valkey"]
    ports = [
        port["port"]
        for rule in objects(managed)["NetworkPolicy", "fastapi-app"]["spec"]["egress"]
        for port in rule["ports"]
    ]
    assert 6380 in ports


def test_a_secret_address_stays_a_reference() -> None:
    by_file = shipped(store={"url": {"file": "/run/secrets/store/url"}})
    spec = deployment(by_file)["template"]["spec"]
    assert {"name": "store", "mountPath": "/run/secrets/store", "readOnly": True} in spec["containers"][
        0
    ]["volumeMounts"]
    assert spec["volumes"][-1]["secret"]["items"] == [{"key": "url", "path": "url"}]
    by_name = shipped(store={"url": {"env": "STORE_URL"}})
    env = deployment(by_name)["template"]["spec"]["containers"][0]["env"]
    assert env[-1]["valueFrom"]["secretKeyRef"] == {"name": "fastapi-app-store", "key": "STORE_URL"}


def test_pods_reach_vendors_and_nothing_private() -> None:
    egress = objects(shipped())["NetworkPolicy", "fastapi-app"]["spec"]["egress"][-1]
    assert [port["port"] for port in egress["ports"]] == [443]
    assert "169.254.0.0/16" in egress["to"][0]["ipBlock"]["except"], (
        "where a cloud hands out credentials"
    )
