"""`headworks load` as a user meets it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from headworks.cli.app import app

BODY = json.dumps({"layer": "fairness", "reason": "quota-exceeded", "status": 429}).encode()


class Service(BaseHTTPRequestHandler):
    """Serves pro-9 and refuses everybody else."""

    protocol_version = "HTTP/1.1"
    asked = threading.Event()

    def do_GET(self) -> None:
        served = self.headers["X-API-Key"] == "pro-9"
        if self.headers["X-API-Key"]:
            self.asked.set()
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response(200 if served else 429)
        self.send_header("Content-Type", "application/json" if served else "application/problem+json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Service.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _load(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headworks", "load", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_json_tells_who_was_served_and_refused(url: str) -> None:
    done = _load("--url", url, "--duration", "3s", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    customers, polite = report["crowds"]
    assert (polite["sent"], polite["served"], polite["share"]) == (2, 2, 1.0)
    assert customers["refused"] == customers["sent"] > 0
    assert [(row["layer"], row["reason"]) for row in report["decisions"]] == [
        ("", ""),
        ("fairness", "quota-exceeded"),
    ]


def test_the_closing_table_names_layers_and_latencies(url: str) -> None:
    done = _load("--url", url, "--duration", "1", "--rate", "20")
    assert done.returncode == 0, done.stderr
    for words in ("Who decided", "quota-exceeded", "polite", "p99"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--url", "http://example.com"], "this machine only"),
        (["--url", "https://127.0.0.1:8080"], "speaks only http"),
        (["--vendor-stats", "llm=https://api.openai.com"], "this machine only"),
        (["--vendor-stats", "llm"], "must be NAME=URL"),
        (["--duration", "soon"], "not a duration"),
        (["--duration", "0"], "more than nothing"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence_and_2(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["load", *arguments])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_ctrl_c_ends_a_run_early_and_still_reports(url: str) -> None:
    command = [sys.executable, "-m", "headworks", "load", "--url", url, "--duration", "1h", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert Service.asked.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert 0 < json.loads(out)["sent"] < 3600, "of ten a second for an hour"


def test_without_a_stack_it_says_how_to_start_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = _load("--url", f"http://127.0.0.1:{free.getsockname()[1]}", "--duration", "1s")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nothing answers at" in done.stderr
    assert "headworks up" in done.stderr
