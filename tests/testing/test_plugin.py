"""The pytest plugin, run by pytest in a process of its own, as in somebody else's repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
STRICT = "[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error\n"


def run(folder: Path, tests: str, *options: str) -> tuple[int, str]:
    """Exit code and output of pytest on one file of tests, every warning an error."""
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "test_theirs.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    return result.returncode, result.stdout + result.stderr


def examples() -> str:
    """The page's section on testing one's own service, as one file."""
    section = PAGE.read_text(encoding="utf-8").partition("## Your own service")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def test_the_examples_of_the_page_are_tests_that_pass(tmp_path: Path) -> None:
    """Found by itself where headworks is installed, under strict markers and warnings as errors."""
    code, said = run(tmp_path, examples())
    assert code == 0, said
    assert "6 passed" in said


def test_they_fail_when_what_they_test_is_not_so(tmp_path: Path) -> None:
    """More places, a wider limit, and a vendor that allows less than the policy says."""
    tests = examples().replace('"10/min"', '"1000/min"').replace("in_flight = 5", "in_flight = 50")
    kept = "async def test_the_contract_is_kept(make_headworks, headworks_client, headworks_vendors):\n"
    assert kept in tests
    tests = (
        "from __future__ import annotations\nfrom headworks.testing.fake_vendor import limit\n" + tests
    )
    less = '    headworks_vendors["llm"] = FakeVendor([limit("1/min")])\n'
    code, said = run(tmp_path, tests.replace(kept, kept + less))
    assert code == 1, said
    for test in ("the_sixth_at_once", "a_caller_gets_ten", "the_contract_is_kept"):
        assert re.search(rf"FAILED .*{test}", said), said


def test_it_stays_out_of_everybody_elses_way(tmp_path: Path) -> None:
    """Only its own file is imported, coroutine tests of others are left alone."""
    tests = """
import sys

def test_nothing_of_the_house_is_loaded():
    loaded = {name for name in sys.modules if name.startswith("headworks")}
    assert loaded == {
        "headworks", "headworks.errors", "headworks.testing", "headworks.testing.plugin"
    }
    assert "starlette" not in sys.modules and "httpx2" not in sys.modules
"""
    code, said = run(tmp_path, tests)
    assert code == 0, said
    code, said = run(tmp_path, "async def test_theirs():\n    pass\n")
    assert code == 1
    assert "async def functions are not natively supported" in said


def test_a_mark_on_what_is_no_coroutine_is_a_mistake(tmp_path: Path) -> None:
    tests = "import pytest\n\n@pytest.mark.virtual_time\ndef test_theirs():\n    pass\n"
    code, said = run(tmp_path, tests)
    assert code == 1
    assert "virtual_time is for `async def` tests" in said


def test_a_policy_s_file_and_its_mistakes(tmp_path: Path) -> None:
    """A path is read; mistakes are listed as anywhere; the environment changes nothing."""
    tests = '''
from pathlib import Path
import pytest
from headworks import PolicyError

POLICY = """
schema = 1
service.name = "shop"
fairness.default_tier = "free"
fairness.tiers.free = { rate = "10/min" }
store.url = "valkey://nowhere"
management.port = 80
"""

def test_file(make_headworks, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWORKS_SERVICE__NAME", "other")
    monkeypatch.setenv("HEADWORKS_POD", "other")
    (tmp_path / "headworks.toml").write_text(POLICY)
    works = make_headworks(Path(tmp_path / "headworks.toml"))
    assert (works.policy.service.name, works.pod) == ("shop", "pod-1")
    assert works.policy.management.port == 0

def test_mistakes(make_headworks):
    with pytest.raises(PolicyError, match="the test's policy: fairness.tiers.free.rate: 'ten'"):
        make_headworks(POLICY.replace("10/min", "ten"))
'''
    code, said = run(tmp_path, tests)
    assert code == 0, said
