"""Whole units are removed: every family gets smaller, in every layout, and loads as it was in memory."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.report import Report
from tests import tiny
from tests.resume.interrupted import interrupted

LAYOUTS = ("uniform", "per_layer", "padded")
CALIBRATION = {"samples": 4, "length": 32}
UNEVEN = {"name": "profile", "blocks": [0.2, 0.4, 0.6]}
PROBE = torch.randint(0, tiny.VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(2))
STRANGERS = ["exaone4", "gptj"]  # whose units are derived


pytestmark = pytest.mark.usefixtures("check_in_process")


def asked(layout: str, **others: Any) -> dict[str, Any]:
    pattern = {"name": "units", "multiple": 8, "parts": others.pop("parts", "all")}
    allocation = "uniform" if layout == "uniform" else UNEVEN
    recipe = {"method": "wanda", "pattern": pattern, "sparsity": 0.4, "allocation": allocation}
    return recipe | {"layout": layout, "calibration": CALIBRATION} | others


def cut(folder: Path, out: Path, layout: str) -> tuple[Report, dict[str, Any]]:
    """Prune with the first choice that this layout accepts; each refusal must name a choice that works."""
    for parts, repair in itertools.product(("all", "ffn"), ("affine", "least_squares")):
        choice = {"parts": parts, "repair": repair}
        try:
            return prune(folder, asked(layout, **choice), out=out), choice
        except RequestError as refusal:
            assert refusal.field in ("layout", "pattern", "repair"), refusal
            way_out = "least_squares" if refusal.field == "repair" else "parts=ffn"
            assert way_out in str(refusal)
            assert not out.exists()
    raise AssertionError("no choice was possible")


def load(folder: Path, layout: str) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=layout == "per_layer", output_loading_info=True
    )
    assert not info["missing_keys"] - set(model.all_tied_weights_keys)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*tiny.CUT, *STRANGERS])
def test_a_cut_checkpoint_is_smaller_and_equals_the_masked_model(
    family: str, layout: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder, out = checkpoints(family), tmp_path / "out"
    report, choice = cut(folder, out, layout)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] <= 1e-5
    assert report.totals["sparsity"] == pytest.approx(0.4, abs=4.1 / 48)  # half a step
    loaded = load(out, layout)
    tensors = [t for file in out.glob("*.safetensors") for t in load_file(file).values()]
    held = sum(t.numel() for t in tensors)
    assert held == sum(p.numel() for p in loaded.parameters()) == report.totals["parameters_after"]
    removed = sum(site.dropped - site.zeros for site in report.sites)
    added = report.totals["parameters_after"] - report.totals["parameters_before"] + removed
    assert added == 0 or choice["repair"] == "affine"
    if layout != "padded":
        assert removed == sum(site.dropped for site in report.sites) > 0
    cached = loaded.generate(PROBE, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    again = loaded(cached, use_cache=False).logits[0, PROBE.shape[1] - 1 : -1].argmax(-1)
    assert torch.equal(again, cached[0, PROBE.shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2"])
def test_a_model_in_memory_ends_as_its_checkpoint_would(
    family: str, layout: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    _, choice = cut(folder, tmp_path / "out", layout)
    expected = load(tmp_path / "out", layout)
    model = tiny.model(family)
    prune(model, asked(layout, **choice), tokenizer=AutoTokenizer.from_pretrained(folder))
    assert (model(PROBE).logits - expected(PROBE).logits).abs().max() <= 1e-5
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(PROBE).logits, model(PROBE).logits)


LOADERS = {
    "import": "import llmprune\nfrom transformers import AutoModelForCausalLM as A\nload = A.from_pretrained",
    "import afterwards": (
        "from transformers import AutoModelForCausalLM as A\nimport llmprune\nload = A.from_pretrained"
    ),
    "llmprune.load": "import llmprune\nload = lambda folder: llmprune.load(folder)[0]",
    "trust_remote_code": (
        "from transformers import AutoModelForCausalLM as A\n"
        "load = lambda folder: A.from_pretrained(folder, trust_remote_code=True)"
    ),
}
SLOW = ("import afterwards", "llmprune.load")
CHECKS = """
import copy, json, sys, torch
from transformers import AutoTokenizer
from safetensors.torch import load_file
for folder in sys.argv[1:]:
    model = load(folder).eval()
    expected = load_file(folder + "/../expected.safetensors")
    with torch.no_grad():
        assert (model(expected["ids"]).logits - expected["logits"]).abs().max() <= 1e-5, folder
    assert torch.equal(copy.deepcopy(model)(expected["ids"]).logits, model(expected["ids"]).logits)
    model.set_attn_implementation("eager")
    seen = {c._attn_implementation for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    assert seen == {"eager"}, seen
    model.save_pretrained(folder + "-again")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder + "-again")
    again, first = (load(name).eval()(expected["ids"]).logits for name in (folder + "-again", folder))
    assert torch.equal(again, first)
print("llmprune" in sys.modules)
"""


@pytest.mark.parametrize(
    "loader", ["import", "trust_remote_code", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_layers_of_different_sizes_load_in_a_fresh_process(
    loader: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folders = []
    for family in ("phi3", "gpt2"):
        out = tmp_path / family / "out"
        cut(checkpoints(family), out, "per_layer")
        with torch.no_grad():
            logits = load(out, "per_layer")(PROBE).logits
        save_file({"ids": PROBE, "logits": logits.contiguous()}, tmp_path / family / "expected.safetensors")
        folders.append(str(out))
    done = subprocess.run(
        [sys.executable, "-c", LOADERS[loader] + CHECKS, *folders], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str("llmprune" in LOADERS[loader])
    for folder in map(Path, folders):  # what was loaded and saved again loads without llmprune as well
        both = [folder, folder.with_name("out-again")]
        codes = [(one / "modeling_llmprune.py").read_text() for one in both]
        configs = [json.loads((one / "config.json").read_text()) for one in both]
        assert codes[0] == codes[1]
        assert configs[0]["auto_map"] == configs[1]["auto_map"]
        if "llmprune" in LOADERS[loader]:  # else transformers writes the name of its own class
            assert configs[0]["architectures"] == configs[1]["architectures"]


def test_the_modelling_file_needs_no_llmprune(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    cut(checkpoints("llama"), tmp_path / "out", "per_layer")
    code = (tmp_path / "out" / "modeling_llmprune.py").read_text()
    assert "import llmprune" not in code and "from llmprune" not in code
    assert len(code.splitlines()) < 120
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoModel", "AutoModelForCausalLM"}
    assert config["architectures"] == ["LlmpruneLlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_a_survey_of_the_dense_model_serves_no_other_propagation(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    flap = {"method": "flap", "sparsity": 0.4, "pattern": {"multiple": 8}, "calibration": CALIBRATION}
    errors = {}
    for way in ("dense", "block"):
        report = prune(checkpoints("llama"), flap | {"propagation": way}, out=tmp_path / way)
        errors[way] = [site.error for site in report.sites]
    assert errors["dense"][:2] == pytest.approx(errors["block"][:2], rel=1e-5)
    assert errors["dense"][2:] != errors["block"][2:]


def test_an_interrupted_run_resumes_to_the_same_bytes(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    flap = {"method": "flap", "sparsity": 0.4, "pattern": {"multiple": 8}, "calibration": CALIBRATION}
    for repair in ("mean_bias", "affine"):
        recipe = flap | {"repair": repair}
        whole = tmp_path / f"whole-{repair}"
        prune(checkpoints("llama"), recipe, out=whole)
        out = tmp_path / f"cut-{repair}"
        with interrupted(after=2):
            prune(checkpoints("llama"), recipe, out=out)
        report = prune(checkpoints("llama"), recipe, out=out, resume=True)
        for file in whole.glob("*.safetensors"):
            assert (out / file.name).read_bytes() == file.read_bytes()
        assert [s.model_dump() for s in report.sites] == [
            s.model_dump() for s in Report.from_json((whole / "llmprune_report.json").read_text()).sites
        ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sparsity": 0.95}, "sparsity: 0.95 was asked, and at most"),
        ({"pattern": {"multiple": 64}}, "pattern.multiple: 64 was asked"),
        ({"pattern": {"multiple": 8}, "layout": "padded", "model": "mistral"}, "repair: it gives"),
        ({"pattern": {"multiple": 8}, "model": "olmo2"}, "layout: heads cannot be cut out of 'olmo2'"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_written(
    change: dict[str, Any], words: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    recipe = {"method": "flap", "pattern": {"multiple": 8}, "calibration": CALIBRATION} | copy.deepcopy(
        change
    )
    with pytest.raises(RequestError) as refusal:
        prune(checkpoints(recipe.pop("model", "llama")), recipe, out=tmp_path / "out")
    assert str(refusal.value).startswith(words)
    assert not (tmp_path / "out").exists()


def test_cutting_a_dispatched_model_is_refused() -> None:
    model = cpu_offload(tiny.model("llama"))
    with pytest.raises(RequestError, match="accelerate has dispatched"):
        prune(model, asked("per_layer"))
