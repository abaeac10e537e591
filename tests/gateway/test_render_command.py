"""`headworks render`, target by target."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from headworks.cli.app import app

POLICY = """
schema = 1
[service]
name = "edge"
[fairness]
default_tier = "free"
tiers.free = { rate = "10/min" }
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    (tmp_path / "headworks.toml").write_text(POLICY)
    return str(tmp_path / "headworks.toml")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["render", *arguments])
    return result.exit_code, result.output


def test_files_go_into_the_folder_that_is_named(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "edge"
    options = ("--pod", "10.0.0.7:8000", "--pod", "[2001:db8::1]:8000")
    code, said = run("nginx", "--policy", policy, *options, "--out", str(out))
    assert code == 0
    assert said.split() == [str(out / "nginx.conf"), str(out / "edge.js")]
    assert "server [2001:db8::1]:8000 max_fails=0;" in (out / "nginx.conf").read_text()
    assert '["10.0.0.7:8000", "[2001:db8::1]:8000"]' in (out / "edge.js").read_text()


def test_without_a_folder_they_go_to_standard_output(policy: str) -> None:
    code, said = run("nginx", "--policy", policy)
    assert code == 0
    assert said.startswith("# ---- nginx.conf\n")
    assert "\n# ---- edge.js\n" in said


def test_what_cannot_be_rendered_is_one_sentence(policy: str, tmp_path: Path) -> None:
    assert run("nginx", "--policy", policy, "--pod", "nowhere")[0] == 2
    code, said = run("nginx", "--policy", str(tmp_path / "none.toml"))
    assert (code, said) == (2, f"headworks: {tmp_path}/none.toml: there is no such file\n")
    (tmp_path / "file").touch()
    code, said = run("nginx", "--policy", policy, "--out", str(tmp_path / "file"))
    assert (code, "cannot write to" in said) == (2, True)


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("envoy", {"bootstrap.yaml", "endpoints.yaml"}),
        ("gateway-api", {"manifests.yaml", "base/httproute.yaml", "base/backendtrafficpolicy.yaml"}),
        ("ingress-nginx", {"manifests.yaml", "base/ingress.yaml", "base/configmap.yaml"}),
        ("kubernetes", {"manifests.yaml", "base/kustomization.yaml", "base/deployment.yaml"}),
        ("compose", {"compose.yaml", "edge/bootstrap.yaml", "edge/endpoints.yaml"}),
        ("dockerfile", {"Dockerfile", ".dockerignore"}),
    ],
)
def test_every_target_renders_and_then_nothing_has_changed(
    policy: str, tmp_path: Path, target: str, files: set[str]
) -> None:
    out = tmp_path / "out"
    assert run(target, "--policy", policy, "--out", str(out))[0] == 0
    assert files <= {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    code, said = run(target, "--policy", policy, "--diff", str(out))
    assert (code, [line for line in said.splitlines() if "warning" not in line]) == (0, [])


def test_a_difference_is_shown_and_nothing_is_written(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("kubernetes", "--policy", policy, "--out", str(out))
    file = out / "base/deployment.yaml"
    file.write_text(file.read_text().replace("replicas: 1 ", "replicas: 7 "))
    changed = file.read_text()
    code, said = run("kubernetes", "--policy", policy, "--diff", str(out))
    assert code == 1
    assert "-  replicas: 7  # deploy.replicas" in said
    assert "+  replicas: 1  # deploy.replicas" in said
    assert file.read_text() == changed


def test_manifests_can_be_piped_on(policy: str) -> None:
    code, said = run("kubernetes", "--policy", policy)
    assert code == 0
    assert "Deployment" in [found["kind"] for found in yaml.safe_load_all(said)]


def test_an_override_that_pods_would_not_have_is_refused(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWORKS_DEPLOY__REPLICAS", "3")
    code, said = run("kubernetes", "--policy", policy)
    assert code == 2
    assert "the pods would not have HEADWORKS_DEPLOY__REPLICAS" in said
    assert run("nginx", "--policy", policy)[0] == 0


def test_a_retired_controller_is_rendered_with_a_warning(policy: str) -> None:
    assert "ingress-nginx is retired" in run("ingress-nginx", "--policy", policy)[1]
