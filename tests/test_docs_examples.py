"""Every Python example in README and docs runs, unless it says why not.

Examples of one page run in order and share their names, in a folder where `headworks.toml` is the
shipped policy. One that cannot run there stands under a line `<!-- not run: reason -->`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*$")
PAGES = sorted(
    page
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]
    if page.exists() and BLOCK.search(page.read_text())
)


def examples(page: str) -> list[str]:
    """The examples to run, each preceded by the blank lines that give it its line numbers."""
    return [
        "\n" * page[: block.start(1)].count("\n") + block[1]
        for block in BLOCK.finditer(page)
        if not NOT_RUN.search(page[: block.start()])
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "examples/service/headworks.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for example in examples(page.read_text()):
        exec(compile(example, str(page), "exec"), names)


def test_only_a_reason_keeps_an_example_from_running() -> None:
    """A marker without a reason, or somewhere else on the page, does not."""
    page = (
        "<!-- not run: needs a server -->\n```python\na\n```\n"
        "<!-- not run: -->\n```python\nb\n```\n\n```python\nc\n```\n"
    )
    assert [example.strip() for example in examples(page)] == ["b", "c"]
