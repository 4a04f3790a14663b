"""The map of the house in llmprune/README.md is the house.

`python -m tests.test_house` writes the tree and the floors into the README again.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from tests import mixtures
from tests.test_architecture import FLOORS, ROOT

LIBRARY = ROOT / "llmprune"
README = LIBRARY / "README.md"
MARK = "<!-- {name} -->\n```\n{text}\n```\n<!-- end -->"
ROOT_FILES, ROOMS = 12, 31


def first_sentence(file: Path) -> str:
    """What a file says of itself."""
    paragraph = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".:")


def branch(folder: Path, depth: int) -> list[tuple[str, str]]:
    """The folder's files, then its folders, each with its line."""
    indent = "  " * depth
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    found = [(f"{indent}{path.name}", first_sentence(path)) for path in files]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        found.append((f"{indent}{inner.name}/", first_sentence(inner / "__init__.py")))
        found += branch(inner, depth + 1)
    return found


def tree() -> str:
    lines = branch(LIBRARY, 0)
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{line}".rstrip() for name, line in lines)


def floors() -> str:
    return "\n".join(
        f"{floor:>2} {' · '.join(sorted(rooms))}" for floor, rooms in sorted(FLOORS.items(), reverse=True)
    )


def families() -> str:
    """The mixtures that `tests/test_mixtures.py` runs over."""
    return textwrap.fill(" · ".join(sorted(mixtures.FAMILIES)), 120, break_on_hyphens=False)


BLOCKS = {"tree": tree, "floors": floors, "mixtures": families}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_map_is_the_house(name: str) -> None:
    said = README.read_text().partition(f"<!-- {name} -->\n```\n")[2].partition("\n```\n<!-- end -->")[0]
    assert said == BLOCKS[name]()


def test_every_file_says_what_it_is() -> None:
    silent = [name for name, line in branch(LIBRARY, 0) if not line]
    assert not silent


def test_the_table_of_eval_names_every_file() -> None:
    table = (ROOT / "eval" / "README.md").read_text()
    files = [
        path for folder in ("llmprune_eval", "benchmarks") for path in (ROOT / "eval" / folder).glob("*.py")
    ]
    unnamed = [path.name for path in files if path.name != "__init__.py" and f"{path.name}`" not in table]
    assert not unnamed


def test_the_root_and_the_rooms_stay_few() -> None:
    files = list(LIBRARY.glob("*.py"))
    folders = [path for path in LIBRARY.glob("*/__init__.py")]
    assert len(files) <= ROOT_FILES
    assert len(files) + len(folders) <= ROOMS


def write() -> None:
    """Write the map."""
    text = README.read_text()
    for name, made in BLOCKS.items():
        start = f"<!-- {name} -->\n"
        before, _, rest = text.partition(start)
        text = before + MARK.format(name=name, text=made()) + rest.partition("<!-- end -->")[2]
    README.write_text(text)


if __name__ == "__main__":
    write()
