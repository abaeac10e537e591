"""`headworks render nginx`."""

from __future__ import annotations

from pathlib import Path

import pytest
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
