"""README.md is short enough to be read, and what it points to is there."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from llmprune.recipe.text import shipped
from tests.test_architecture import ROOT

TEXT = (ROOT / "README.md").read_text()
PAGES = [path for path in ROOT.rglob("*.md") if not {"node_modules", ".venv"} & {*path.parts}]


def words(text: str) -> int:
    """Of a text as it is read, without its markup."""
    plain = re.sub(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)", "", re.sub(r"\]\([^)]*\)", "]", text), flags=re.DOTALL)
    return len(re.findall(r"\w[\w.,:%+/=-]*", plain))


def paragraphs() -> list[str]:
    """Prose and items of lists; no headings, tables or code."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    found = []
    for part in re.split(r"\n\s*\n|\n(?=- )|(?<=:)\n", text):
        lines = [line for line in part.strip().splitlines() if not line.startswith(("#", "|", "<!--"))]
        if words(" ".join(lines)):
            found.append(" ".join(lines))
    return found


def test_the_first_command_comes_soon() -> None:
    assert words(TEXT.partition("```")[0]) <= 60


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150
    lengths = [words(one) for one in paragraphs()]
    assert len(lengths) > 15
    assert statistics.median(lengths) <= 25
    assert max(lengths) <= 60, max(paragraphs(), key=words)


def test_it_has_one_picture() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert (ROOT / picture).is_file()


def test_it_names_recipes_that_there_are() -> None:
    named = set(re.findall(r"--recipe ([\w-]+)", TEXT))
    assert len(named) > 5 and named <= set(shipped())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, target
