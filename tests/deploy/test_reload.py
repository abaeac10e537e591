"""A pod that follows its policy, really run: under `headworks serve` and under plain uvicorn."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.ports import free_port

pytestmark = pytest.mark.real

PATIENCE = 60.0
"""Seconds after which something has not happened."""

POLICY = """
schema = 1
[service]
name = "pod"
app = "pod_app:app"
reload = "100ms"
[fairness]
default_tier = "free"
tiers.free = { rate = "1000/min" }
"""

APP = """
from starlette.applications import Starlette
from headworks import Headworks

app = Headworks.load().protect(Starlette())
"""

SERVE = ("headworks", "serve", "--host", "127.0.0.1", "--port")
PLAIN = ("uvicorn", "pod_app:app", "--port")


def limits(url: str) -> str:
    """What an answer of the pod says of its limits, "" while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            return str(reply.headers["ratelimit-policy"])
    except urllib.error.HTTPError as error:  # there is no route, and limits all the same
        return str(error.headers["ratelimit-policy"])
    except OSError:
        return ""


def until(url: str, expected: str, log: Path) -> None:
    ends = time.monotonic() + PATIENCE
    while limits(url) != expected:
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("module", [SERVE, PLAIN], ids=["serve", "uvicorn"])
def test_a_pod_takes_up_a_config_map_that_is_exchanged(tmp_path: Path, module: tuple[str, ...]) -> None:
    """The link moves, the limits with it, in the running process; a broken file changes nothing."""

    def version(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "headworks.toml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    (tmp_path / "pod_app.py").write_text(APP)
    (tmp_path / "headworks.toml").symlink_to("..data/headworks.toml")
    version("..1", POLICY)
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", *module, str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
    try:
        until(url, '"tier:free";q=1000;w=60', log)
        version("..2", POLICY.replace("1000/min", "2000/min"))
        until(url, '"tier:free";q=2000;w=60', log)
        version("..3", POLICY.replace("1000/min", "many"))
        ends = time.monotonic() + PATIENCE
        while "is refused" not in log.read_text():
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        assert "fairness.tiers.free.rate: 'many' is not a rate" in log.read_text()
        assert limits(url) == '"tier:free";q=2000;w=60'
    finally:
        process.kill()
        process.wait()
