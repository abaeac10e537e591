"""The documentation of the policy is the policy's own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from headworks.policy.fields import Section
from headworks.policy.load import parse
from headworks.policy.reference import refreshed
from headworks.policy.settings import Policy

PAGE = Path(__file__).parents[2] / "docs" / "layers" / "policy.md"


def test_the_page_holds_every_setting_and_law_as_the_code_has_them() -> None:
    """`python -m headworks.policy.reference docs/layers/policy.md` brings it up to date."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == refreshed(page)
    assert "| `call_timeout` |" in page


def test_every_setting_is_described() -> None:
    def models(model: type[Section]) -> set[type[Section]]:
        return {model}.union(*(models(below) for below in model.__subclasses__()))

    sections = models(Section) - {Section, Policy}
    silent = [
        f"{model.__name__}.{name}"
        for model in sections
        for name, field in model.model_fields.items()
        if not field.description and not issubclass(field.annotation or object, Section)
    ]
    assert len(sections) > 10
    assert silent == []


def test_the_small_policy_of_the_page_is_valid() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert parse(tomllib.loads(blocks[0]), environ={}).service.name == "shop"
