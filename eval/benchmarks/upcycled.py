"""Prune a small mixture that was trained here, since no large trained one could be had.

stories15M becomes a Mixtral of 8 experts, 2 of them for each token: every expert is a copy of its
feed-forward part, the routers are random ("Sparse Upcycling", Komatsuzaki et al., 2022, arXiv:2212.05055).
So that the experts come to differ, each loses a quarter of its channels to random ones of its own
("Drop-Upcycling", Nakamura et al., 2025, arXiv:2502.19261), and experts and routers learn from stories15M on
stories that it writes. Calibration, training and evaluation are stories of different seeds. A row's
perplexity is over 64 stories of 256 tokens, with the standard error of the paired difference to the dense
mixture, in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from against_authors import write
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import llmprune
from llmprune.progress import track
from llmprune.recipe import Recipe

EXPERTS, CHOSEN, LENGTH, BATCH = 8, 2, 256, 4
RATE = 3e-4
REDRAWN = 0.25  # of every expert's channels
SEEDS = {"training": 0, "calibration": 1, "evaluation": 2}
SAME = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAME += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id")
ROWS: dict[str, dict[str, Any]] = {
    f"{method}-{share}": {"method": method, "pattern": "experts", "sparsity": share / 100}
    for share in (25, 50)
    for method in ("reap", "ean", "expert_frequency")
}
for name in [*ROWS]:  # with one pass instead of two: all is measured in the dense model
    other = {"block": "dense", "dense": "block"}[Recipe.parse(ROWS[name]).propagation]
    ROWS[f"{name}-{other}"] = ROWS[name] | {"propagation": other}
for share in (25, 50):
    for seed in range(5):
        asked = {"method": {"name": "random", "seed": seed}, "pattern": "experts", "sparsity": share / 100}
        ROWS[f"random-{share}-seed-{seed}"] = asked
for name in ("magnitude", "wanda", "sparsegpt", "admm"):
    ROWS[f"{name}-50"] = {"method": name, "sparsity": 0.5}
for name in ("reap-50", "wanda-50", "sparsegpt-50"):
    for recovery in ("rescale", "reconstruct"):
        ROWS[f"{name}-{recovery}"] = ROWS[name] | {"recovery": recovery}


def upcycled(dense: LlamaForCausalLM) -> MixtralForCausalLM:
    """A mixture that computes what the dense model does, whatever its routers choose."""
    own = {name: getattr(dense.config, name) for name in SAME}
    counts = {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    rope = {"rope_parameters": dense.config.rope_parameters, "tie_word_embeddings": True}
    torch.manual_seed(0)
    made = MixtralForCausalLM(MixtralConfig(**own, **counts, **rope)).eval()
    weights = dense.state_dict()
    state = made.state_dict()
    for name in state:
        if name in weights:
            state[name] = weights[name]
    for block in range(dense.config.num_hidden_layers):
        mlp = f"model.layers.{block}.mlp"
        both = torch.cat([weights[f"{mlp}.{part}_proj.weight"] for part in ("gate", "up")])
        state[f"{mlp}.experts.gate_up_proj"] = both.repeat(EXPERTS, 1, 1)
        state[f"{mlp}.experts.down_proj"] = weights[f"{mlp}.down_proj.weight"].repeat(EXPERTS, 1, 1)
        state[f"{mlp}.gate.weight"] = (
            torch.randn(EXPERTS, dense.config.hidden_size) / dense.config.hidden_size**0.5
        )
    made.load_state_dict(state)
    return made


@torch.no_grad()
def redraw(model: MixtralForCausalLM) -> None:
    """Re-initialise some channels of every expert at random, with the standard deviation of its matrices."""
    torch.manual_seed(0)
    for layer in model.model.layers:
        experts = layer.mlp.experts
        width = experts.down_proj.shape[-1]
        for first, last in zip(experts.gate_up_proj, experts.down_proj, strict=True):
            drawn = torch.randperm(width)[: round(REDRAWN * width)]
            for matrix in (first[:width], first[width:], last.T):
                matrix[drawn] = torch.randn(len(drawn), matrix.shape[1]) * matrix.std()


@torch.no_grad()
def stories(model: Any, kind: str, count: int) -> Tensor:
    """Texts that the dense model writes [count, LENGTH]."""
    torch.manual_seed(SEEDS[kind])
    first = torch.full((32, 1), model.config.bos_token_id)
    how = {"do_sample": True, "top_k": 0, "max_length": LENGTH, "min_length": LENGTH}
    return torch.cat([model.generate(first, **how) for _ in track(range(-(-count // 32)), kind)])[:count]


def train(model: Any, teacher: Any, text: Tensor, steps: int) -> None:
    """AdamW on the KL divergence to the dense model; attention, norms and embeddings stay as they are."""
    model.requires_grad_(False)
    trained = [p for layer in model.model.layers for p in layer.mlp.requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    for step in track(range(steps), "training"):
        ids = text[(torch.arange(BATCH) + step * BATCH) % len(text)]
        with torch.no_grad():
            meant = teacher(ids).logits.log_softmax(-1)
        said = model(ids).logits.log_softmax(-1)
        kl_div(said.flatten(0, 1), meant.flatten(0, 1), reduction="batchmean", log_target=True).backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()


@torch.no_grad()
def losses(model: Any, text: Tensor) -> Tensor:
    """The mean loss of every story, in nats."""
    found = []
    for ids in text.split(8):
        logits = model(ids).logits[:, :-1].log_softmax(-1)
        found.append(-logits.gather(-1, ids[:, 1:, None])[..., 0].mean(-1))
    return torch.cat(found)


@torch.no_grad()
def copies_removed(model: Any, text: Tensor, tokenizer: Any) -> float:
    """The largest change of a logit when two of the eight copies go."""
    before = model(text).logits
    recipe = {"method": "random", "pattern": "experts", "sparsity": 0.25}
    llmprune.prune(model, recipe, tokens=text, tokenizer=tokenizer)
    return float((model(text).logits - before).abs().max())


def drawn(out: Path, share: int) -> dict[str, Any]:
    """The mean of the random draws, and its standard error."""
    seeds = [json.loads((out / f"random-{share}-seed-{seed}.json").read_text()) for seed in range(5)]
    found = [row["perplexity"] for row in seeds]
    error = statistics.stdev(found) / len(found) ** 0.5
    row = {"name": f"random-{share}", "perplexity": statistics.mean(found), "standard_error": error}
    return row | {"parameters": seeds[0]["parameters"]}


def main() -> None:
    """Train the mixture unless it is there, then measure the rows that are not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="stories15M")
    parser.add_argument("work", type=Path, help="where the mixture is kept")
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    dense = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).eval()
    evaluation = stories(dense, "evaluation", 64)
    folder = asked.work / "mixture"
    if not folder.exists():
        row = {
            "name": "copies",
            "steps": asked.steps,
            "dense_perplexity": math.exp(losses(dense, evaluation).mean()),
        }
        exact = upcycled(dense).double()  # which transformers' grouped kernel does not compute
        exact.set_experts_implementation("eager")
        row["largest_change"] = copies_removed(exact, evaluation[:2], tokenizer)
        made = upcycled(dense)
        redraw(made)
        train(made, dense, stories(dense, "training", 512), asked.steps)
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write(asked.out, str(__doc__), str(asked.model), row)
        print(json.dumps(row), flush=True)
    calibration = stories(dense, "calibration", 64)
    mixture = AutoModelForCausalLM.from_pretrained(folder)
    before, size = losses(mixture, evaluation), sum(p.numel() for p in mixture.parameters())
    for name, recipe in {"mixture": None, **ROWS}.items():
        if (asked.out / f"{name}.json").exists():
            continue
        row, after = {"name": name, "parameters": size}, before
        if recipe:
            with tempfile.TemporaryDirectory() as place:
                report = llmprune.prune(folder, recipe, tokens=calibration, out=Path(place) / "out")
                after = losses(AutoModelForCausalLM.from_pretrained(Path(place) / "out"), evaluation)
            row |= {"parameters": report.totals["parameters_after"], "seconds": report.time["total_s"]}
        row |= {"perplexity": math.exp(after.mean()), "loss": float(after.mean())}
        row["difference"] = [
            float((after - before).mean()),
            float((after - before).std() / len(after) ** 0.5),
        ]
        write(asked.out, str(__doc__), str(folder), row)
        print(json.dumps(row), flush=True)
    for share in (25, 50):
        write(asked.out, str(__doc__), str(folder), drawn(asked.out, share))


if __name__ == "__main__":
    main()
