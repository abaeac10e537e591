"""The documents: what they point at exists, what they quote is so, nothing is in them by accident."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from headworks.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))

LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./:-])((?:[\w-]+/)+[\w.-]+\.(?:py|lua|toml|svg|html))(?![\w/])")
TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")
CHECKED = re.compile(r"^\$ ((?:\w+=\S+ )*)headworks check (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

BY_ACCIDENT = {
    "a path of somebody's machine": re.compile(
        r"(?<![\w.:/])/(?:home|root|Users|work|opt|tmp|var)/|\b[A-Z]:\\"
    ),
    "the host of a package registry": re.compile(
        r"pypi\.|pythonhosted|npmjs|crates\.io|proxy\.golang|docker\.io|ghcr\.io|quay\.io", re.I
    ),
    "how the project is developed": re.compile(
        r"\b(?:issues? #?\d+|pull requests?|(?<!user[- ])agents?|sub-?agents?|sprints?|milestones?"
        r"|integrator|work ?trees?|todo|fixme|design\.md|style\.md|source design)\b",
        re.I,
    ),
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links that lead nowhere: a file that is not there, or a heading that it does not have."""
    dead = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def anchors(text: str) -> set[str]:
    """The headings of a page as fragments."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_files(page: Path, text: str) -> list[str]:
    """Files named as `folder/file.py`, found neither in the repository nor below the package."""
    places = (ROOT, ROOT / "src" / "headworks", page.parent)
    return [name for name in FILE.findall(text) if not any((place / name).is_file() for place in places)]


def accidents(text: str) -> list[str]:
    """What stands in a text that no reader needs."""
    found = [(what, pattern.search(text)) for what, pattern in BY_ACCIDENT.items()]
    return [f"{what}: {match[0]!r}" for what, match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links only: what is elsewhere may move without us."""
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """A page that names a file which was renamed is wrong from then on."""
    assert missing_files(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_row_of_a_table_is_one_line(page: Path) -> None:
    """A row that goes on in the next line ends its table there, wherever it is shown."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert [row for row in rows if not row.endswith("|")] == []


def test_every_test_that_a_page_names_exists() -> None:
    """As `tests/folder/test_file.py::test_name`."""
    named = [found for page in PAGES for found in TEST.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 10
    files = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    assert [test for file, test in named if f"def {test}(" not in files[file]] == []


@pytest.mark.parametrize("page", [*PAGES, *IMAGES], ids=name_of)
def test_nothing_stands_in_a_document_by_accident(page: Path) -> None:
    """Documents speak about headworks, to whoever uses it."""
    assert accidents(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[gone](layers/gone.md)", "link"),
        ("[no such heading](#nowhere)", "link"),
        ("see `vendor/gone.py`", "file"),
        ("logs in /home/somebody/logs", "accident"),
        ("from https://pypi.org/simple", "accident"),
        ("as issue 3 asks", "accident"),
        ("[fine](README.md), `vendor/pipeline.py`, any user-agent, /chat, and the issue of time", ""),
    ],
)
def test_the_checks_themselves_find_what_is_wrong(text: str, wrong: str) -> None:
    page = ROOT / "README.md"
    found = {
        "link": dead_links(page, text),
        "file": missing_files(page, text),
        "accident": accidents(text),
    }
    assert [kind for kind, mistakes in found.items() if mistakes] == ([wrong] if wrong else [])


@pytest.mark.parametrize("image", IMAGES, ids=name_of)
def test_an_image_says_what_it_shows_and_is_shown(image: Path) -> None:
    """Who cannot see it reads its title and description; an image that no page shows is left over."""
    root = ElementTree.parse(image).getroot()
    named = {element.tag.rpartition("}")[2]: (element.text or "").strip() for element in root}
    assert named["title"]
    assert named["desc"]
    assert any(image.name in page.read_text(encoding="utf-8") for page in PAGES)


def test_the_index_lists_every_page_of_the_documents() -> None:
    """`docs/README.md` the pages, `docs/decisions/README.md` the decisions."""
    for index in (ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"):
        text = index.read_text(encoding="utf-8")
        pages = {
            *index.parent.glob("*.md"),
            *(index.parent / "layers").glob("*.md"),
            *(index.parent / "targets").glob("*.md"),
        }
        assert [page.name for page in sorted(pages - {index}) if f"{page.name})" not in text] == []


def test_what_pages_show_of_check_is_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, in order; a page may leave lines out."""
    monkeypatch.chdir(ROOT)
    shown = [example for page in PAGES for example in CHECKED.findall(page.read_text(encoding="utf-8"))]
    assert len(shown) >= 2
    assert any(overrides for overrides, _, _ in shown)
    for overrides, policy, quoted in shown:
        with monkeypatch.context() as environ:
            for override in overrides.split():
                environ.setenv(*override.split("=", 1))
            result = CliRunner().invoke(app, ["check", policy])
        printed = iter([line.rstrip() for line in result.output.splitlines()])
        for line in quoted.splitlines():
            assert line.rstrip() == "…" or line.rstrip() in printed, f"check no longer prints: {line}"
