"""What the algorithms of the authors' code reach on the tokens of ../shared/baselines, written out plainly.

One sample at a time, with plain transformers, and nothing of llmprune but the reading of the text. It tells
a difference of method from one of machine. `against_authors.py` must come near: Wanda with `--propagation
block`, FLAP with `multiple=1` to `flap_20_variance`, CFSP with `multiple=1,temperature=3.28` up to the
channel more that its authors' code keeps in every block.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from against_authors import calibration_tokens, perplexity_of, tokens_of, write
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reached(Exception):
    """The first block has been reached."""


def first_inputs(model: Any, samples: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """The inputs of the first block, sample by sample, and what it is given besides."""
    inputs: list[Tensor] = []
    given: dict[str, Any] = {}
    first = model.model.layers[0]
    own = first.forward

    def note(x: Tensor, **kwargs: Any) -> None:
        inputs.append(x)
        given.update(kwargs, past_key_values=None)
        raise Reached

    first.forward = note
    for sample in samples:
        try:
            model(sample[None], use_cache=False)
        except Reached:
            continue
    first.forward = own
    return inputs, given


def dropped(score: Tensor, pattern: str) -> Tensor:
    """True for the half of every row, or of every four, with the smallest scores."""
    rows = score if pattern == "unstructured" else score.reshape(-1, 4)
    order = torch.sort(rows, dim=1, stable=True).indices[:, : rows.shape[1] // 2]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).reshape(score.shape)


def wanda(model: Any, samples: Tensor, pattern: str) -> None:
    """Block by block: the statistics of a block while it is dense, then its pruned outputs to the next."""
    inputs, given = first_inputs(model, samples)
    for block in model.model.layers:
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        norms = {layer: torch.zeros(layer.in_features) for layer in layers}

        def measure(layer: nn.Module, args: tuple[Tensor], norms: dict[nn.Module, Tensor] = norms) -> None:
            norms[layer] += args[0].flatten(0, 1).square().sum(0) / len(samples)

        hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
        for x in inputs:
            block(x, **given)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            weight = layer.weight.data
            weight[dropped(weight.abs() * norms[layer].sqrt(), pattern)] = 0
        inputs = [block(x, **given) for x in inputs]


class Fluctuation:
    """Mean and fluctuation of a layer's inputs, taken in sequence by sequence."""

    def __init__(self, features: int) -> None:
        self.mean, self.squares = torch.zeros(features), torch.zeros(features, dtype=torch.float64)
        self.theirs, self.seen = torch.zeros(features), 0

    def add(self, x: Tensor) -> None:
        """A sequence [tokens, features]; to the authors' fluctuation the first adds nothing."""
        self.seen += 1
        self.mean += (x.mean(0) - self.mean) / self.seen
        self.theirs += (x - self.mean).square().sum(0) * (self.seen - 1) / self.seen
        self.squares += x.double().square().mean(0)

    def variance(self) -> Tensor:
        """Over all tokens, for sequences of one length."""
        return (self.squares / self.seen - self.mean.double().square()).float()


def observe(model: Any, samples: Tensor, hooks: dict[nn.Module, Callable[..., None]]) -> None:
    """The dense model on all samples, with forward hooks for the time being."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    for sample in samples:
        model.model(sample[None], use_cache=False)
    for handle in handles:
        handle.remove()


def standard(scores: Tensor) -> Tensor:
    """Scores of mean 0 and deviation 1."""
    return (scores - scores.mean()) / scores.std()


def flap(model: Any, samples: Tensor, share: float, fluctuation: str) -> None:
    """All units ranked together, groups of a key and its queries whole, and what went put into a bias.

    A group is paid for as 170 channels, 512 // 3, the authors' figure for a head of Llama. This model's
    groups, a key and three queries of 64, happen to be worth 512 / 3 channels too.
    """
    groups = model.config.num_key_value_heads
    attention = [block.self_attn.o_proj for block in model.model.layers]
    layers = [*attention, *(block.mlp.down_proj for block in model.model.layers)]
    seen = {layer: Fluctuation(layer.in_features) for layer in layers}
    observe(model, samples, {layer: lambda layer, x, _: seen[layer].add(x[0][0]) for layer in layers})
    scores, costs = [], []
    for layer in layers:
        own = seen[layer]
        metric = own.variance() if fluctuation == "variance" else own.theirs
        metric = metric * layer.weight.square().sum(0)
        heads = layer in attention
        scores.append(standard(metric.square()).reshape(groups, -1).mean(1) if heads else standard(metric))
        costs.append(torch.full_like(scores[-1], 170 if heads else 1))
    ranked = torch.cat(scores).sort(descending=True)
    paid = torch.cat(costs)[ranked.indices].cumsum(0)
    threshold = ranked.values[(paid - paid[-1] * (1 - share)).abs().argmin()]
    for layer, score in zip(layers, scores, strict=True):
        gone = (score <= threshold).repeat_interleave(layer.in_features // len(score))
        layer.bias = nn.Parameter(layer.weight[:, gone] @ seen[layer].mean[gone])
        layer.weight.data[:, gone] = 0


def cfsp(model: Any, samples: Tensor, share: float) -> None:
    """Budgets by the angles between the blocks' inputs and outputs, channels by the norms of their values.

    In its authors' fine score the weights cancel out, and the threshold is the channel after the last.
    """
    blocks = list(model.model.layers)
    angles = {block: 0.0 for block in blocks}
    squares = {block.mlp.down_proj: torch.zeros(block.mlp.down_proj.in_features) for block in blocks}

    def turn(block: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
        cosine = torch.cosine_similarity(x[0], y, dim=-1).clamp(-1, 1)
        angles[block] += float(cosine.acos().sum() / torch.pi)

    def add(layer: nn.Module, x: tuple[Tensor], _: Tensor) -> None:
        squares[layer] += x[0][0].square().sum(0)

    observe(model, samples, {**dict.fromkeys(blocks, turn), **dict.fromkeys(squares, add)})
    angle = torch.tensor([angles[block] for block in blocks])
    weight = torch.sigmoid((angle - angle.mean()) / 1e4)
    if (1 - share) * weight.max() >= weight.mean():  # nothing keeps more than it has
        room = weight.mean() * (1 / (1 - share) - 1) / (weight.max() - weight.mean()) / 1.05
        weight = weight.mean() + room * (weight - weight.mean())
    kept = (1 - share) * weight / weight.mean()
    for block, part in zip(blocks, kept.tolist(), strict=True):
        layer = block.mlp.down_proj
        score = squares[layer]
        layer.weight.data[:, score < score.sort(descending=True).values[int(part * len(score))]] = 0


ROWS: dict[str, Callable[[Any, Tensor], None]] = {
    "wanda_50": partial(wanda, pattern="unstructured"),
    "wanda_2_4": partial(wanda, pattern="2:4"),
    "cfsp_20": partial(cfsp, share=0.2),
    "cfsp_30": partial(cfsp, share=0.3),
    "cfsp_50": partial(cfsp, share=0.5),
    "flap_20": partial(flap, share=0.2, fluctuation="theirs"),
    "flap_20_variance": partial(flap, share=0.2, fluctuation="variance"),
    "flap_30": partial(flap, share=0.3, fluctuation="theirs"),
    "flap_50": partial(flap, share=0.5, fluctuation="theirs"),
}


@torch.no_grad()
def main() -> None:
    """Run the rows that were asked for, and print each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, help="a folder of eval/results, for a file a row")
    arguments = parser.parse_args()
    samples = calibration_tokens(arguments.model, arguments.shared)
    test = tokens_of(arguments.shared, "test", AutoTokenizer.from_pretrained(arguments.model))
    for name in arguments.rows:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        ROWS[name](model, samples)
        row = {"name": name, "perplexity": perplexity_of(model, test)}
        print(json.dumps(row), flush=True)
        if arguments.out:
            write(arguments.out, str(__doc__), arguments.model, row)


if __name__ == "__main__":
    main()
