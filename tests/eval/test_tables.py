"""What README.md, eval/RESULTS.md and the recipes say is what was measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pictures
import pytest
import table
import tables

RECIPES = sorted((table.ROOT / "recipes").glob("*.yaml"))


def perplexities() -> dict[str, float]:
    """What was measured, by the recipe's name with underscores."""
    rows = table.rows("one_shot", "against_authors", "textless", "depth")
    rows["depth-20"] = rows["shortgpt-20-span"]  # the same recipe
    rows |= {f"tyr-{share}": rows[f"flap-{share}-search-held_out"] for share in (30, 50)}
    healed = {
        "admm-2of4": "64k",
        "flap-30": "128k",
        "depth-20": "256k-relative_rate-2e-3",
        "wanda-50": "50k",
    }
    rows |= {f"{start}-healed": table.rows("healed")[f"{start}-{tokens}"] for start, tokens in healed.items()}
    return {name.replace("2of4", "2_4").replace("-", "_"): row["perplexity"] for name, row in rows.items()}


def test_the_tables_are_current() -> None:
    text = "".join(page.read_text() for page in tables.PAGES)
    assert {name for _, name, _ in tables.MARKED.findall(text)} == tables.TABLES.keys()
    assert tables.written(text) == text, "run python eval/benchmarks/tables.py"


def test_the_picture_is_current() -> None:
    assert pictures.FILE.read_text() == pictures.drawn(), "run python eval/benchmarks/pictures.py"


def test_every_result_says_what_was_measured_and_how() -> None:
    files = [*table.RESULTS.glob("*/*/*.json")]
    assert len(files) > 80
    for file in files:
        told = json.loads(file.read_text())
        assert re.fullmatch(r"[0-9a-f]{12}\+?", told["commit"]), file
        if file.parent.name != "memory":  # these say what they ran in words of their own
            assert told["protocol"] and told["model"], file
            assert told["name"] == file.stem, file


def test_every_model_was_asked_as_many_questions_as_we_say() -> None:
    (asked,) = {row["questions"] for row in table.rows("zero_shot").values()}
    assert f"**{asked} questions a task**" in tables.PAGES[1].read_text()


def words(file: Path) -> str:
    """A text without its line breaks."""
    return " ".join(file.read_text().split())


@pytest.mark.parametrize("share", ["20", "30"])
def test_who_wins_without_text_is_what_we_say(share: str) -> None:
    results, recipes = map(words, (tables.PAGES[1], table.ROOT / "recipes" / "README.md"))
    assert "Without text, the policy wins, though Wanda comes close" in results
    assert "What looks at weights alone is worse than chance" in results
    assert (
        "`row_norm` and `spectral`, PruneNet's baselines, have no recipe: on SmolLM2-135M both lose"
        in recipes
    )
    assert "`prunenet` wins there where there is no text, by little over `wanda`" in recipes
    found = {name: row["perplexity"] for name, row in table.rows("textless").items()}
    order = [f"prunenet-{share}-again", f"wanda-{share}-self", f"random-{share}", f"row_norm-{share}"]
    assert sorted(order, key=lambda name: found[name]) == order  # the first two on the same text
    assert found[f"wanda-{share}-self"] < 1.06 * found[f"prunenet-{share}-again"]
    assert found[f"spectral-{share}"] > found[f"random-{share}"]


def test_another_figure_makes_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables.TABLES["units"].text()
    results = Path(shutil.copytree(table.RESULTS, tmp_path / "results"))
    monkeypatch.setattr(table, "RESULTS", results)
    folder = results / table.MODEL / "against_authors"
    told = json.loads((folder / "flap_30.json").read_text())
    (folder / "flap_30.json").write_text(json.dumps(told | {"perplexity": 1234.5}))
    (folder / "cfsp_50.json").unlink()
    changed = set(tables.TABLES["units"].text().splitlines()) - set(before.splitlines())
    assert len(changed) == 2
    assert any("| 1,234 |" in line for line in changed)
    assert any(line.startswith("| `cfsp-50` | not measured |") for line in changed)


def require_bits_per_byte(recipe: Path) -> None:
    """A recipe that changes the vocabulary states them over the dense model's, for two texts."""
    row = table.rows("vocabulary", model="qwen2.5-coder-0.5b")["65536"]
    said = re.search(r"bits per byte ([\d.]+)x dense on WikiText-2 test, ([\d.]+)x on C4", recipe.read_text())
    assert said is not None
    for shown, text in zip(said.groups(), ("wikitext2-test", "c4-held-out"), strict=True):
        assert float(shown) == pytest.approx(row["texts"][text]["times_dense"], abs=5.1e-4)


def require_equal_bytes(recipe: Path) -> None:
    """A recipe that is measured beside the dense model's quants states what is gone and what is lost."""
    found = table.rows("equal_bytes")
    row, dense = found[f"{recipe.stem}-f16"], found["dense-f16"]
    said = re.search(
        r"([\d.]+) % of its parameters gone, KL ([\d.]+) nats .* ([\d.]+) \(dense ([\d.]+)\)",
        recipe.read_text(),
    )
    assert said is not None
    gone = 100 * (1 - row["parameters"] / dense["models"][0]["parameters"])
    for shown, value in zip(
        said.groups(), (gone, row["kl"], row["bits_per_byte"], dense["bits_per_byte"]), strict=True
    ):
        assert float(shown) == pytest.approx(value, abs=0.051 if value > 10 else 5.1e-4)
    assert f"`{recipe.stem}`" in (table.ROOT / "recipes" / "README.md").read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_what_was_measured(recipe: Path) -> None:
    known = perplexities()
    if "on held-out text" in recipe.read_text():
        require_equal_bytes(recipe)
        return
    if "bits per byte" in recipe.read_text():
        require_bits_per_byte(recipe)
        return
    said = re.search(r"WikiText-2 perplexity ([\d.]+) \(dense ([\d.]+)\)", recipe.read_text())
    name = recipe.stem.replace("2of4", "2_4").replace("-", "_")
    if said is None:
        assert "Not measured yet" in recipe.read_text()
        assert name not in known
        return
    for shown, measured in zip(said.groups(), (known[name], known["dense"]), strict=True):
        half_a_digit = 0.5 * 10.0 ** -len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(measured, abs=1.01 * half_a_digit)
    assert f"`{recipe.stem}`" in (table.ROOT / "recipes" / "README.md").read_text()
