"""YAML with comments: a reader gets back what was written, every comment beside its value."""

from __future__ import annotations

import pytest
import yaml as reader
from hypothesis import given
from hypothesis import strategies as st

from headworks.manifest import Said, plain, yaml

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "yes",
        "Null",
        "1e3",
        "0x1f",
        "12:30",
        "1_000",
        "~",
        "=",
        "<<",
        "a: b",
        "a #b",
        "- a",
        "a\nb\n",
        ".5",
    ]
)
scalars = texts | st.integers() | st.booleans() | st.none() | st.floats(0.001, 1e6)
said = st.sampled_from(["gateway.total_rate", "fixed: nothing to choose"])
data = st.recursive(
    scalars | st.builds(Said, scalars, said),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
        | st.builds(Said, st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), said)
    ),
    max_leaves=12,
)


@given(st.lists(data, min_size=1, max_size=3))
def test_a_reader_gets_back_what_was_written(documents: list[object]) -> None:
    text = yaml(documents, head="Two lines\nof introduction")
    assert list(reader.safe_load_all(text)) == [plain(document) for document in documents]


def test_it_reads_as_a_person_would_write_it() -> None:
    document = {
        "kind": "Service",
        "spec": {
            "ports": [{"name": "http", "port": Said(8000, "deploy.port")}],
            "selector": Said({"app": "a"}, "service.name"),
            "empty": [],
        },
        "text": "one\n  two\n",
        "yes": "no",
    }
    assert yaml([document], head="Rendered.") == (
        "# Rendered.\n"
        "kind: Service\n"
        "spec:\n"
        "  ports:\n"
        "    - name: http\n"
        "      port: 8000  # deploy.port\n"
        "  selector:  # service.name\n"
        "    app: a\n"
        "  empty: []\n"
        "text: |\n"
        "  one\n"
        "    two\n"
        '"yes": "no"\n'
    )


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(TypeError, match="set cannot be written"):
        yaml([{"a": {1}}])
