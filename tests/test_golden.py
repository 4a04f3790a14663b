"""Golden bytes: what every shipped recipe writes must not change by a bit.

`golden.json` holds the sha256 of the weights, with the machine on which they were taken, and is compared only
there. Elsewhere the sizes and counts of every site are compared. A change that means to change numbers runs
`python -m tests.test_golden`, which takes the values again, and says so in CHANGELOG.md under **numbers:**.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmprune import prune, recover
from llmprune.checkpoint import reload
from llmprune.recipe.text import load_data, shipped
from tests import mixtures, tiny
from tests.conftest import SHARED
from tests.reloading import check_here

pytestmark = pytest.mark.usefixtures("check_in_process")

FILE = Path(__file__).with_name("golden.json")
RECIPES = shipped()
TRAINED = SHARED / "models" / "stories15M"
FAMILIES = ("llama", "phi3", "qwen2")  # separate projections, fused ones, biases
MIXTURES = ("mixtral", "gpt_oss")  # experts stored one by one, and fused ones
TEXT = {"samples": 8, "length": 32}
SEARCH = {"name": "search", "rounds": 1, "generations": 1, "offspring": 4, "levels": 5}
LORA = {"name": "lora", "epochs": 4, "products": "float32"}
DISTILL = {"name": "distill", "tokens": 512, "batch_tokens": 64, "products": "float32"}
# What no shipped recipe reaches; `then` is a recovery of the result.
BESIDES: dict[str, dict[str, Any]] = {
    "global": {"method": "wanda", "sparsity": 0.4, "allocation": "global"},
    "owl": {"method": "wanda", "sparsity": 0.7, "allocation": "owl"},
    "erk": {"method": "magnitude", "sparsity": 0.4, "allocation": "erk"},
    "profile": {
        "method": "random",
        "sparsity": 0.4,
        "allocation": {"name": "profile", "blocks": [0.5, 0.3, 0.4]},
    },
    "block": {"method": "sparsegpt", "sparsity": 0.5, "propagation": "block"},
    "spectral": {
        "method": "spectral",
        "sparsity": 0.3,
        "pattern": {"multiple": 4},
        "repair": "least_squares",
    },
    "row-norm": {"method": "row_norm", "sparsity": 0.3, "pattern": {"multiple": 4}, "propagation": "layer"},
    "padded": {
        "method": "wanda",
        "sparsity": 0.3,
        "pattern": {"name": "units", "multiple": 4},
        "layout": "padded",
    },
    "per-kind": {
        "method": "flap",
        "sparsity": 0.3,
        "pattern": {"multiple": 4},
        "allocation": {"name": "global_threshold", "per_kind": True},
        "repair": "affine",
        "propagation": "block",
    },
    "reconstruct-masked": {"method": "wanda", "pattern": "2:4", "then": "reconstruct"},
    "reconstruct-cut": {"method": "flap", "sparsity": 0.3, "pattern": {"multiple": 4}, "then": "reconstruct"},
    "lora-masked": {"method": "wanda", "pattern": "2:4", "then": LORA},
    "distill-masked": {"method": "wanda", "pattern": "2:4", "then": DISTILL},
}
# Recipes that do not run on all models: the tiny ones have no BPE tokenizer, and training takes its time.
ON = {
    **dict.fromkeys(("vocabulary-64k", "small-english"), (TRAINED.name,)),
    **dict.fromkeys(("small", "smaller", "flap-30-healed", "depth-20-healed", "best-70"), FAMILIES[:2]),
    "wanda-50-healed": FAMILIES[:1],
    "admm-2of4-healed": FAMILIES[:1],
    **dict.fromkeys(("tyr-50", "obs-30"), FAMILIES[:1]),  # as tyr-30 and obs-20
    "cfsp-30-recover": FAMILIES,
    **dict.fromkeys(("reap-25", "reap-50", "reap-25-wanda-50"), MIXTURES),
}
CASES = [
    *((recipe, family) for recipe in RECIPES for family in ON.get(recipe, (*FAMILIES, TRAINED.name))),
    *((name, "llama") for name in BESIDES),
]


def machine() -> dict[str, Any]:
    """All that decides how sums are rounded."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": f"{next(iter(models), '')}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def asked(name: str, family: str) -> tuple[dict[str, Any], dict[str, Any] | str | None]:
    """A case as a recipe of this size, and the recovery that follows."""
    if name in BESIDES:
        data = {"calibration": TEXT, **BESIDES[name]}
        return data, data.pop("then", None)
    data = load_data(name)
    own = data.get("calibration", {})
    data["calibration"] = own | TEXT | ({"dataset": "builtin"} if own.get("dataset") == "c4" else {})
    for step in data.get("steps", [data]):
        _fitted(step, small=family in FAMILIES)
    if recovery := data.get("recovery"):
        name = recovery if isinstance(recovery, str) else recovery["name"]
        data["recovery"] = {"lora": LORA, "distill": DISTILL}.get(name, recovery)
    return data, None


def _fitted(step: dict[str, Any], *, small: bool) -> None:
    """Ask for what these models have: fewer rows, one of three blocks, few channels, more to learn."""
    if step.get("allocation") == "search":
        step["allocation"] = SEARCH
    if step.get("pattern") == "blocks" and small:
        step["sparsity"] = 0.34
    elif isinstance(step.get("pattern"), dict) and "keep" in step["pattern"]:
        step["pattern"] |= {"keep": 16384}
    elif small and "pattern" not in step and step["method"] != "sparsegpt":
        step["pattern"] = {"multiple": 8}


def written(name: str, family: str, model: Path, out: Path) -> dict[str, Any]:
    """The hash of all weights that a case leaves, and what its report counts for every site."""
    data, then = asked(name, family)
    report = prune(model, data, out=out)
    if then is not None:
        out = out.with_name("recovered")
        report = recover(out.with_name("out"), then, out=out)
    content = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        content.update(file.name.encode() + file.read_bytes())
    counts = [[site.dropped, site.zeros, *site.shape_after] for site in report.sites]
    return {"sha256": content.hexdigest(), "counts": counts}


def hangs_on_the_machine(name: str, family: str) -> bool:
    """Whether rounding may change which units go: the text is the model's own, and budgets follow from it."""
    return "self" in str(asked(name, family)[0])


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture
def _as_it_was_taken(monkeypatch: pytest.MonkeyPatch, texts: Path) -> Iterator[None]:
    """The check in this process, and generated texts kept from case to case, for their time."""
    monkeypatch.setattr("llmprune.text.cache.cache_folder", lambda: texts)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_as_it_was_taken")
@pytest.mark.parametrize(("name", "family"), CASES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_bytes_are_those_of_before(
    name: str, family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    if family == TRAINED.name and not TRAINED.is_dir():
        pytest.skip(f"needs {TRAINED}")
    golden = json.loads(FILE.read_text())
    model = TRAINED if family == TRAINED.name else checkpoints(family)
    found, expected = written(name, family, model, tmp_path / "out"), golden["runs"][f"{name} {family}"]
    if golden["taken on"] == machine():
        assert found["sha256"] == expected["sha256"]
    if golden["taken on"] == machine() or not hangs_on_the_machine(name, family):
        assert found["counts"] == expected["counts"]


def test_every_recipe_has_golden_bytes() -> None:
    assert set(json.loads(FILE.read_text())["runs"]) == {f"{name} {family}" for name, family in CASES}


def take() -> None:
    """Write `golden.json`."""
    torch.set_num_threads(1)
    reload.check = check_here
    runs = []
    with tempfile.TemporaryDirectory() as work:
        models = {family: tiny.save(family, Path(work) / family) for family in FAMILIES}
        models |= {family: mixtures.save(family, Path(work) / family) for family in MIXTURES}
        models[TRAINED.name] = TRAINED
        for name, family in CASES:
            torch.manual_seed(0)
            os.environ["LLMPRUNE_CACHE"] = f"{work}/{name}-{family}/cache"
            found = written(name, family, models[family], Path(work, f"{name}-{family}", "out"))
            runs.append(f"{json.dumps(f'{name} {family}')}: {json.dumps(found)}")
    lines = ",\n  ".join(runs)
    FILE.write_text(f'{{"taken on": {json.dumps(machine())}, "runs": {{\n  {lines}\n}}}}\n')


if __name__ == "__main__":
    take()
