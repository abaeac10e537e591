"""`headworks check`: what it prints, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headworks.cli.app import app

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "examples" / "service" / "headworks.toml"
BROKEN = ROOT / "tests" / "policy" / "broken"


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments], env=environ)


def test_a_sound_policy_exits_0_and_shows_how_each_quota_is_kept() -> None:
    result = run(str(SHIPPED))
    assert result.exit_code == 0
    assert "is sound" in result.stdout
    for words in ("500/min", "bucket (inferred)", "8.333/s", "600/min", "sliding", "99.83%"):
        assert words in result.stdout
    assert "remedy" not in result.stdout


def test_a_quota_per_day_is_shown_as_it_is_kept() -> None:
    quota = {"HEADWORKS_VENDORS__LLM__QUOTA": '["500/min", "10000/day"]'}
    assert "10000/d  bucket (inferred)" in run(str(SHIPPED), **quota).stdout
    found = run(str(SHIPPED), **quota, HEADWORKS_VENDORS__LLM__DAY="America/Los_Angeles").stdout
    assert "10000/d  calendar day (policy)  0.116/s  10000  100.00%" in found
    assert "remedy" not in found, "a day's quota is no pace: no law takes it for one"
    wrong = run(str(SHIPPED), HEADWORKS_VENDORS__LLM__DAY="Pacific").stderr
    assert "vendors.llm.day: 'Pacific' is no time zone; write \"UTC\"" in wrong


def test_a_broken_law_exits_1_and_names_arithmetic_and_remedy() -> None:
    result = run(str(BROKEN / "sla-below-call.toml"))
    assert result.exit_code == 1
    assert "error service.sla: 30s is less than" in result.stdout
    assert '    remedy: service.sla = "35s"' in result.stdout
    assert "does not fit together: 1 error" in result.stdout


def test_an_invalid_policy_exits_2_and_names_file_field_and_value_on_stderr() -> None:
    path = BROKEN / "out-of-range.toml"
    result = run(str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}: invalid service.sla: '2h' is out of range; allowed is 100ms to 1h"
    ]


def test_an_unreadable_file_exits_2_with_one_sentence(tmp_path: Path) -> None:
    result = run(str(tmp_path / "absent.toml"))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"{tmp_path}/absent.toml: there is no such file"]
    result = run("/dev/null")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["/dev/null: this is not a regular file"]


def test_json_says_the_same_as_data() -> None:
    sound = json.loads(run(str(SHIPPED), "--json").stdout)
    assert sound["sound"] is True
    assert [(v["vendor"], v["quota"]) for v in sound["vendors"]] == [
        ("llm", "500/min"),
        ("llm", "200000 tokens/min"),
        ("search", "600/min"),
    ]
    broken = json.loads(run(str(BROKEN / "pods-without-store.toml"), "--json").stdout)
    assert [finding["path"] for finding in broken["findings"]] == ["store"]
    invalid = run(str(BROKEN / "unknown-key.toml"), "--json")
    assert invalid.exit_code == 2
    assert [p["path"] for p in json.loads(invalid.stdout)["problems"]] == ["admission.max_inflight"]


def test_what_is_checked_is_what_would_run() -> None:
    result = run(str(SHIPPED), HEADWORKS_DEPLOY__REPLICAS="500")
    assert result.exit_code == 1
    assert "500 pods share" in result.stdout


def test_a_models_own_quota_is_shown_beside_its_vendors(tmp_path: Path) -> None:
    """A bucket of one leaves jitter nothing but the rate to take from: 1 s of every 1.05 s."""
    path = tmp_path / "headworks.toml"
    own = '[vendors.llm.models."gpt-large"]\nquota = ["60/min"]\n'
    path.write_text(SHIPPED.read_text(encoding="utf-8") + own, encoding="utf-8")
    shown = json.loads(run(str(path), "--json").stdout)["vendors"]
    (model,) = [vendor for vendor in shown if vendor["vendor"] == "llm:gpt-large"]
    assert model["pace"] == pytest.approx(1 / 1.1)
    assert model["utilisation"] == pytest.approx(1 / 1.1)


def test_help_shows_an_example() -> None:
    assert "Example: headworks check headworks.toml" in run("--help").stdout
