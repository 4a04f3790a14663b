"""Heads for multi-token prediction stay where their sizes do, lose experts with the blocks, or go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from llmprune import prune, score
from llmprune.tensors import ops
from tests import packed, tiny
from tests.mixtures import PROBE, asked, layout_of, load
from tests.resume.interrupted import pruned_twice

REAP = {"method": "reap", "sparsity": 0.25}
WIDTH = tiny.COMMON["hidden_size"]


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def reversed_rows(tensor: Tensor) -> Tensor:
    """Another tensor of the same values, so that a head is not its twin."""
    return tensor.view(torch.uint8).flip(0).view(tensor.dtype) if tensor.ndim > 1 else tensor.flip(0)


def around(names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What stands beside the block of a head: norms and projections of small random numbers."""
    random = torch.Generator().manual_seed(2)
    return {key: 0.2 * torch.randn(shape, generator=random) for key, shape in names.items()}


def behind(block: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """A head as DeepSeek-V3 and GLM-4 have it, with an embedding and a language-modelling head."""
    stem = f"model.layers.{number}."
    norms = dict.fromkeys(
        [f"{stem}{name}.weight" for name in ("enorm", "hnorm", "shared_head.norm")], (WIDTH,)
    )
    copies = dict.fromkeys([f"{stem}embed_tokens.weight", f"{stem}shared_head.head.weight"], (96, WIDTH))
    made = around({**norms, **copies, f"{stem}eh_proj.weight": (WIDTH, 2 * WIDTH)})
    return {stem + tail: tensor for tail, tensor in block.items()} | made


def apart(block: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """A head as Qwen3-Next publishes it."""
    norms = [f"mtp.{name}.weight" for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")]
    made = around({**dict.fromkeys(norms, (WIDTH,)), "mtp.fc.weight": (WIDTH, 2 * WIDTH)})
    return {f"mtp.layers.0.{tail}": tensor for tail, tensor in block.items()} | made


Written = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


def with_heads(
    folder: Path, to: Path, written: Written = behind, heads: int = 1, like: int = 1, lost: str | None = None
) -> Path:
    """A checkpoint with heads that have the tensors of a block, but for a lost one, and other weights."""
    shutil.copytree(folder, to)
    file = to / "model.safetensors"
    own = load_file(file)
    stem = f"model.layers.{like}."
    block = {
        key.removeprefix(stem): reversed_rows(t).clone() for key, t in own.items() if key.startswith(stem)
    }
    for number in range(2, 2 + heads):
        made = written(block, number)
        own |= {key: tensor.clone() for key, tensor in made.items() if lost is None or lost not in key}
    save_file(own, file, metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    count = "num_nextn_predict_layers" if written is behind else "mtp_num_hidden_layers"
    (to / "config.json").write_text(json.dumps(config | {count: heads}))
    return to


def drafting(folder: Path, heads: int) -> tuple[PreTrainedModel, MtpModel]:
    """A model and its heads, as plain transformers loads them."""
    model = load(folder)
    model.config.num_mtp_layers, model.config.mtp_layer_types = heads, ["full_attention"] * heads
    if any(pattern.startswith("model") for pattern in model._keys_to_ignore_on_load_unexpected):
        model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[2-9]\."]  # published ones have 61
    return model, MtpModel.from_pretrained(model).eval()


@torch.no_grad()
def handed_on(heads: MtpModel, number: int, states: Tensor, ids: Tensor) -> Tensor:
    """What a head puts out [1, T, D], given its tokens [1, T] and the states before them."""
    positions = torch.arange(1, 1 + ids.shape[1])[None]
    return heads.forward_layer(number, states, positions, None, input_ids=ids)


@torch.no_grad()
def added(heads: MtpModel, number: int, states: Tensor, ids: Tensor) -> Tensor:
    """What each expert of a head adds to the tokens that choose it, on average: REAP in plain lines."""
    experts, seen = heads.layers[number].mtp_block.mlp.experts, []
    own = experts.forward
    experts.forward = lambda *inputs: (seen.append(inputs), own(*inputs))[1]
    handed_on(heads, number, states, ids)
    del experts.forward
    x, index, weight = seen[0]
    scores = []
    for expert in range(len(experts.down_proj)):
        rows, place = torch.where(index == expert)
        alone = torch.full_like(index[rows][:, :1], expert)
        norms = own(x[rows], alone, weight[rows, place][:, None]).norm(dim=-1)
        scores.append(float(norms.mean()) if len(rows) else 0.0)
    return torch.tensor(scores)


def kept_of(folder: Path, out: Path, stem: str) -> list[int]:
    """The experts of a head that stay; its bytes, and the rows of its router, are the source's."""
    before, after = stored(folder), stored(out)
    numbers = sorted(
        {int(key.split(".experts.")[1].split(".")[0]) for key in after if f"{stem}mlp.experts." in key}
    )
    assert numbers == list(range(len(numbers)))
    down = [
        before[f"{stem}mlp.experts.{e}.down_proj.weight"]
        for e in range(len(before[f"{stem}mlp.gate.weight"]))
    ]
    kept = []
    for number in numbers:
        own = after[f"{stem}mlp.experts.{number}.down_proj.weight"]
        kept += [e for e, was in enumerate(down) if torch.equal(was.view(torch.uint8), own.view(torch.uint8))]
    for key, tensor in after.items():
        if not key.startswith((stem, "mtp.")):
            continue
        head, _, tail = key.partition(".experts.")
        number, _, leaf = tail.partition(".")
        was = before[f"{head}.experts.{kept[int(number)]}.{leaf}" if tail else key]
        if ".gate." in key:
            was = was[kept]
        assert torch.equal(was.view(torch.uint8), tensor.view(torch.uint8)), key
        assert was.dtype == tensor.dtype
    return kept


def require_count_stays(folder: Path, out: Path) -> None:
    """The config says as many heads as before."""
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, out))
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed <= {"llmprune", "num_experts", "n_routed_experts"}


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize(
    ("family", "written", "count", "propagation"),
    [
        ("deepseek_v3", behind, 2, "block"),
        ("deepseek_v3", behind, 2, "dense"),
        ("glm4_moe", behind, 1, "dense"),
        ("qwen3_next", apart, 1, "block"),
    ],
)
def test_a_head_keeps_the_experts_that_add_most(
    family: str,
    written: Written,
    count: int,
    propagation: str,
    checkpoints: tiny.Checkpoints,
    tmp_path: Path,
) -> None:
    """As transformers' own heads compute, behind the pruned or dense trunk and head before."""
    folder, out = with_heads(checkpoints(family), tmp_path / "with", written, count), tmp_path / "out"
    report = prune(folder, REAP | {"propagation": propagation}, tokens=PROBE, out=out)
    require_count_stays(folder, out)
    own, (before, dense) = drafting(out, count), drafting(folder, count)
    trunk, pruned = own if propagation == "block" else (before, dense)
    with torch.no_grad():
        states = trunk.model(PROBE).last_hidden_state
    for number in range(count):
        states, ids = states[:, :-1], PROBE[:, number + 1 :]
        scores = added(dense, number, states, ids)
        groups = getattr(trunk.config, "n_group", 1)
        expected = ops.keep_largest(scores.reshape(groups, -1), len(scores) // groups // 4).flatten()
        stem = f"model.layers.{2 + number}." if written is behind else "mtp.layers.0."
        assert kept_of(folder, out, stem) == expected.nonzero()[:, 0].tolist()
        states = handed_on(pruned, number, states, ids)
    assert report.mtp_heads is not None
    assert [record.units for record in report.mtp_heads] == [[len(scores), len(scores) * 3 // 4]] * count
    assert f"| {count}, with {len(scores) * 3 // 4} of" in (out / "README.md").read_text()


@pytest.mark.usefixtures("check_in_process")
def test_packed_heads_keep_their_bytes(tmp_path: Path) -> None:
    """They are unpacked to be scored, as the blocks are."""
    folder = with_heads(packed.fp8(tmp_path / "fp8"), tmp_path / "with")
    prune(folder, asked(**REAP), out=tmp_path / "out")
    assert len(kept_of(folder, tmp_path / "out", "model.layers.2.")) == 12
    require_count_stays(folder, tmp_path / "out")


@pytest.mark.usefixtures("check_in_process")
def test_a_resumed_run_leaves_the_same_heads(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    pruned_twice(with_heads(checkpoints("deepseek_v3"), tmp_path / "with"), asked(**REAP), tmp_path)


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize(
    ("recipe", "lost", "number"),
    [
        ({"method": "wanda", "sparsity": 0.5}, None, 2),
        ({"pattern": {"name": "blocks", "remove": [0], "keep_ends": False}}, None, 1),
        ({"method": "random", "pattern": "experts", "sparsity": 0.25}, None, 2),
        ({**REAP, "layout": "per_layer"}, None, 2),
        (REAP, "enorm", None),
        (REAP, "post_attention_layernorm", None),
        ({"method": "wanda", "pattern": {"name": "expert_channels", "multiple": 4}}, None, None),
    ],
)
def test_heads_stay_where_they_can(
    recipe: dict[str, Any],
    lost: str | None,
    number: int | None,
    checkpoints: tiny.Checkpoints,
    tmp_path: Path,
) -> None:
    """Behind the last block; else they go, and the report and the card say so."""
    folder, out = with_heads(checkpoints("deepseek_v3"), tmp_path / "with", lost=lost), tmp_path / "out"
    report = prune(folder, asked(**recipe), out=out)
    heads = {key.split(".")[2] for key in layout_of(out) if "eh_proj" in key}
    assert heads == ({str(number)} if number else set())
    config = json.loads((out / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == int(number is not None)
    assert any("multi-token" in warning for warning in report.warnings) == (number is None)
    assert ("multi-token prediction | left out" in (out / "README.md").read_text()) == (number is None)
    loaded = load(out)
    assert report.totals["parameters_after"] - sum(p.numel() for p in loaded.parameters()) <= 32  # buffers


@pytest.mark.usefixtures("check_in_process")
def test_scores_hold_nothing_of_heads(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder = with_heads(checkpoints("deepseek_v3"), tmp_path / "with")
    score(folder, asked(**REAP), out=tmp_path / "scores")
    report = prune(folder, scores=tmp_path / "scores", out=tmp_path / "out")
    assert report.mtp_heads == []
    assert any("left out, since scores hold nothing of them" in warning for warning in report.warnings)


@pytest.mark.usefixtures("check_in_process")
def test_a_head_without_experts_stays_whole(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder = with_heads(checkpoints("deepseek_v3"), tmp_path / "with", like=0)
    report = prune(folder, asked(**REAP), out=tmp_path / "out")
    before, after = stored(folder), stored(tmp_path / "out")
    assert {key for key in before if ".layers.2." in key} == {key for key in after if ".layers.2." in key}
    assert all(torch.equal(before[key], after[key]) for key in before if ".layers.2." in key)
    assert report.mtp_heads is None
    assert not report.warnings
