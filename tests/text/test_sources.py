"""What every text source promises, how a name, a path or an id finds it, and that one file adds one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from itertools import pairwise
from pathlib import Path

import pytest

from llmprune import plugins, prune
from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.sources.base import Documents, TextSource
from llmprune.text.sources.table import Table
from tests import tiny

pytestmark = pytest.mark.usefixtures("check_in_process")

PACKAGE = "llmprune.text.sources"
EVERY = plugins.names(PACKAGE)
# The others go by their own names.
DATASETS = {
    "file": "my.txt",
    "table": "my.jsonl",
    "hub": "org/name",
    "several": "builtin,my.txt",
    "mix": "builtin:2,my.txt:1",
    "answers": "my.jsonl:answers",
    "typos": "typos:my.txt",
}
OWN = """
'''One window over and over.'''
from dataclasses import dataclass

import torch

from llmprune.text.sources.base import TextSource
from llmprune.text.windows import Windows


@dataclass(frozen=True)
class Constant(TextSource):
    '''Counts up from a token.'''

    first: int = 0
    '''The token.'''

    def windows(self, amount, access):
        '''The same in every row.'''
        row = torch.arange(self.first, self.first + amount.length)
        return Windows(row.repeat(amount.samples, 1), self.dataset, amount.seed)
"""


def source_class(name: str) -> type[TextSource]:
    return plugins.find(PACKAGE, name, TextSource)


@pytest.mark.parametrize("name", EVERY)
def test_a_source_is_found_by_its_name(name: str) -> None:
    dataset = DATASETS.get(name, name)
    assert sources.source_class(dataset) is source_class(name)
    found = sources.for_calibration(dataset)
    assert type(found) is source_class(name)
    assert found.dataset == dataset


@pytest.mark.parametrize("name", EVERY)
def test_a_source_says_what_it_is_and_what_its_options_are(name: str) -> None:
    cls = source_class(name)
    assert plugins.about(cls) and inspect.getdoc(cls)
    body = next(n for n in ast.walk(ast.parse(inspect.getsource(cls))) if isinstance(n, ast.ClassDef)).body
    documented = {
        node.target.id
        for node, after in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert set(cls.option_names()) <= documented
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(cls) if f.name != "dataset")


@pytest.mark.parametrize("name", EVERY)
def test_a_source_refuses_the_options_of_others(name: str) -> None:
    every = {option for other in EVERY for option in source_class(other).option_names()}
    dataset = DATASETS.get(name, name)
    for option in sorted(every - set(source_class(name).option_names())):
        with pytest.raises(RequestError, match=f"no such option for the text {dataset}; leave") as raised:
            sources.for_calibration(dataset, {option: 1})
        assert raised.value.field == f"calibration.{option}"


@pytest.mark.parametrize("name", EVERY)
def test_texts_evaluate_and_the_others_are_refused(name: str) -> None:
    dataset = DATASETS.get(name, name)
    if issubclass(source_class(name), Documents):
        assert sources.for_evaluation(dataset) == sources.for_calibration(dataset)
    else:
        with pytest.raises(RequestError, match=f"^perplexity: {dataset!r} is not builtin, c4, wikitext2, a"):
            sources.for_evaluation(dataset)


def test_only_a_text_with_columns_is_evaluated_by_one() -> None:
    assert sources.for_evaluation("my.jsonl", "body") == Table("my.jsonl", "body")
    for dataset in ("builtin", "c4", "my.txt"):
        with pytest.raises(RequestError, match=f"^text_column: there is no such .* text {dataset}; leave"):
            sources.for_evaluation(dataset, "body")


@pytest.mark.parametrize(
    "dataset",
    [
        "no such text",
        "a/b/c",
        "/nowhere/text.doc",
        "wikitext",
        "",
        "file",
        "hub",
        "table",
        "base",
        "a.b",
        ".",
    ],
)
def test_a_nonsense_name_is_refused(dataset: str) -> None:
    with pytest.raises(RequestError, match="is not builtin") as raised:
        sources.for_calibration(dataset)
    assert raised.value.field == "calibration"


def test_a_folder_or_an_unknown_suffix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.docx").write_text("words")
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "folder.txt").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "text.docx", "text.docx", "org/name", tmp_path / "folder.txt"):
        with pytest.raises(RequestError, match=r"is not builtin.* \(\.txt, \.md, \.jsonl"):
            sources.for_calibration(str(path))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("org/name.txt", "file"),
        ("org/name.json", "table"),
        ("org/na.me", "hub"),
        ("self.txt", "file"),
        ("~/t.md", "file"),
    ],
)
def test_a_suffix_that_we_read_makes_a_path(dataset: str, name: str) -> None:
    assert sources.source_class(dataset) is source_class(name)


def test_a_name_wins_over_a_file_that_is_called_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").write_text("words")
    assert sources.source_class("builtin") is source_class("builtin")


def test_one_file_adds_a_source(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somebodys_texts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "constant.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"dataset": "somebodys_texts.constant", "samples": 2, "length": 8, "first": 3}
    report = prune(checkpoints("llama"), method="wanda", calibration=asked, out=tmp_path / "out")
    assert report.recipe["calibration"] == asked | {"seed": 0, "bos": "auto"}
    assert report.calibration is not None
    assert (report.calibration["dataset"], report.calibration["tokens"]) == ("somebodys_texts.constant", 16)
    with pytest.raises(RequestError, match=r"^calibration.redraws: there is no such .* seed, bos, first\)"):
        sources.for_calibration("somebodys_texts.constant", {"redraws": 1})
    with pytest.raises(RequestError, match=r"is not builtin.* must define one Documents, and defines 0"):
        sources.for_evaluation("somebodys_texts.constant")
