"""The card tells what was done to which model, and leaves alone what others wrote into it."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from llmprune_eval import keeping

from llmprune import prune, recover
from llmprune.checkpoint import source
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.report import Report
from llmprune.run import card, card_results
from tests import tiny

TEXT = {"samples": 4, "length": 16}
ASKED = {"method": "magnitude", "pattern": "2:4", "calibration": TEXT}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def dense(checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a dense model that goes by the name org/base on the Hub."""
    folder = Path(shutil.copytree(checkpoints("llama"), tmp_path / "dense"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(source, "_on_hub", lambda repo, *_: Source(repo, folder, "a" * 40))
    monkeypatch.setattr(Source, "tensors", property(lambda self: source.shards.read_headers(self.folder)))
    return folder


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_a_recovered_model_tells_its_base_and_how_it_was_recovered(dense: Path, tmp_path: Path) -> None:
    prune("org/base", ASKED, out=tmp_path / "out")
    recover(tmp_path / "out", "reconstruct")
    prune(tmp_path / "out-recovered", ASKED, out=tmp_path / "again")
    about = "Magnitude pruning (Han et al., 2015, arXiv:1506.02626): small weights go. Looks at no data."
    assert f"\n\n{about}\n\n" in (tmp_path / "out" / "README.md").read_text()
    for name in ("out", "out-recovered", "again"):
        told = metadata(tmp_path / name)
        assert (told["base_model"], told["license"]) == ("org/base", "mit")
    said = "| recovered by | reconstruct, on builtin, 4 windows of 16 tokens, no BOS, seed 0 |\n"
    assert said in (tmp_path / "out-recovered" / "README.md").read_text()
    assert "recovered by" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "licence",
    [
        {"license": "other", "license_name": "own", "license_link": "https://example.com/LICENSE"},
        {"license": ["apache-2.0", "mit"]},
    ],
)
def test_a_licence_is_taken_over_whole(licence: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    (dense / "README.md").write_text(f"---\n{json.dumps(licence)}\n---\n")
    prune(dense, ASKED, out=tmp_path / "out")
    told = metadata(tmp_path / "out")
    assert {key: told[key] for key in told if key.startswith("license")} == licence


@pytest.mark.parametrize(
    ("parts", "layout", "said"),
    [
        ("all", "per_layer", "Whole channels and groups of heads are gone"),
        ("ffn", "per_layer", "Whole channels are gone"),
        ("attention", "per_layer", "Whole groups of heads are gone"),
        ("ffn", "padded", "The zeros are stored"),  # the first block keeps all
    ],
)
def test_what_is_gone_is_told(
    parts: str, layout: str, said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    report = prune(
        checkpoints("llama"),
        method="magnitude",
        sparsity=0.4,
        pattern={"name": "units", "multiple": 4, "parts": parts},
        allocation={"name": "profile", "blocks": [0, 0.6, 0.6]},
        layout=layout,
        out=tmp_path / "out",
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert said in text
    assert text.count(" are gone") + text.count("The zeros are stored") == 1
    assert f" weights, {report.totals['model_sparsity']:.2%} of the model |" in text


@pytest.mark.parametrize("name", ["o", "a 'quoted\" name", "back\\slash"])
def test_the_loading_lines_are_python_whatever_the_folder_is_called(
    name: str, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    prune(checkpoints("llama"), ASKED, out=".")
    assert loaded_names((tmp_path / name / "README.md").read_text()) == [name, name]


def loaded_names(card: str) -> list[str]:
    """What the two loading lines of a card name."""
    code = card.split("```python\n")[1].split("```")[0]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [ast.literal_eval(call.args[0]) for call in calls]


def test_on_the_hub_the_loading_lines_name_the_repository(tmp_path: Path) -> None:
    line = 'model = AutoModelForCausalLM.from_pretrained("{}", trust_remote_code=True)\n'
    other = '# AutoTokenizer.from_pretrained("theirs")\n'
    file = tmp_path / "README.md"
    file.write_text(line.format('a \\"b') + 'tokenizer = AutoTokenizer.from_pretrained("a")\n' + other)
    then = line.format("me/a") + 'tokenizer = AutoTokenizer.from_pretrained("me/a")\n' + other
    with card.addressed(tmp_path, "me/a"):
        assert file.read_text() == then


def perplexity(dataset: str, value: float, **how: Any) -> dict[str, Any]:
    stamp = {"split": "s", "length": 8, "stride": 8, "bos": False, "tokenizer": "t"} | how
    return {"dataset": dataset, "perplexity": value, "protocol": f"{dataset}, {stamp}", **stamp}


def quality(pruned: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """The cells of the one row of a card about two perplexities, but the protocol."""
    evaluation = {"model": {"perplexity": [pruned]}, "baseline": {"perplexity": [dense]}}
    (row,) = card_results._table(evaluation)
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:4]]


def test_a_perplexity_of_other_tokens_stands_not_beside() -> None:
    own = perplexity("t", 5)
    assert quality(own, perplexity("t", 4)) == ["perplexity, t", "4.000", "5.000"]
    assert quality(own, perplexity("t", 4, tokenizer="u")) == ["perplexity, t", "another tokenizer", "5.000"]
    for how in ({"length": 4}, {"windows": 2}):
        assert quality(own, perplexity("t", 4, **how)) == ["perplexity, t", "", "5.000"]


def test_a_name_does_not_break_the_table() -> None:
    row = quality(perplexity("a|b <i>.txt", 5), perplexity("a|b <i>.txt", 4))
    assert row == [r"perplexity, a\|b &lt;i>.txt", "4.000", "5.000"]


THEIRS = """# small

### Quality
Mine, by hand.
{ours}
A remark below the table.

### A smaller heading
More.
"""
RESULT = {"task": {"type": "text-generation"}, "dataset": {"name": "mine", "type": "mine"}}
INDEX = [{"name": "my-name", "results": [RESULT | {"metrics": [{"type": "f1", "value": 0.5}]}]}]


@pytest.fixture
def measured(checkpoints: tiny.Checkpoints, tmp_path: Path) -> tuple[Path, Report]:
    """A pruned folder, and its report with a perplexity."""
    found = prune(checkpoints("llama"), ASKED, out=tmp_path / "out")
    return tmp_path / "out", found.model_copy(
        update={"evaluation": {"model": {"perplexity": [perplexity("t", 5)]}}}
    )


def test_what_others_wrote_into_the_card_stays(measured: tuple[Path, Report]) -> None:
    folder, found = measured
    file = folder / "README.md"
    data = f"---\n{json.dumps({'model-index': INDEX})}\n---\n"
    for ours in ("", "\n## Quality\n\n| measured | old |\n|---|---|\n| gone | 1 |\n"):
        file.write_text(data + THEIRS.format(ours=ours))
        said = card_results.evaluated(folder, found)
        for line in (*THEIRS.split("{ours}")[0].splitlines(), *THEIRS.split("{ours}")[1].splitlines()):
            assert f"{line}\n" in said
        assert said.count("\n## Quality\n\n| measured | dense |") == 1
        assert "gone" not in said
        file.write_text(said)
        assert card_results.evaluated(folder, found) == said
        told = ModelCard(said).data
        assert told.model_name == "my-name"
        assert [(r.dataset_name, r.metric_value) for r in told.eval_results] == [("t", 5), ("mine", 0.5)]


def test_a_card_that_is_gone_is_written_anew(measured: tuple[Path, Report]) -> None:
    folder, found = measured
    before = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    said = card_results.evaluated(folder, found)
    whole, place = before.split("---\n")[2], "## Load it"
    assert all(part.rstrip() in said for part in whole.split(place))
    assert whole.index(place) and 0 < said.index("## Quality") < said.index(
        place
    )  # what it costs comes first


@pytest.mark.parametrize("metadata", ["license: [", "model-index: [1]", "- a list"])
def test_a_card_that_cannot_be_read_is_a_sentence_before_anything_is_written(
    metadata: str, measured: tuple[Path, Report]
) -> None:
    folder, found = measured
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
    before = (folder / "llmprune_report.json").read_text()
    for refused in (
        lambda: keeping.require_ours([str(folder)]),
        lambda: keeping.keep({"model": {"name": str(folder), **found.evaluation["model"]}}),
    ):
        with pytest.raises(RequestError, match=r"^save: .*README\.md cannot be read as a model card"):
            refused()
    assert (folder / "llmprune_report.json").read_text() == before
