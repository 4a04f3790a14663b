"""What the algorithm of Wanda's authors reaches on the tokens of ../shared/baselines, written out plainly.

One sample at a time, statistics of a block while it is dense, then its pruned outputs to the next block; with
plain transformers, and nothing of llmprune but the reading of the text. It tells a difference of method from
one of machine: `against_authors.py --propagation block` must come out the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from against_authors import calibration_tokens, tokens_of
from llmprune_eval.perplexity import window_loss
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


@torch.no_grad()
def prune(model: Any, samples: Tensor, pattern: str) -> None:
    """Wanda, block by block."""
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


def main() -> None:
    """Prune to 50 percent and to 2:4, and print the perplexities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("shared", type=Path)
    arguments = parser.parse_args()
    samples = calibration_tokens(arguments.model, arguments.shared)
    test = tokens_of(arguments.shared, "test", AutoTokenizer.from_pretrained(arguments.model))
    for pattern in ("unstructured", "2:4"):
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        prune(model, samples, pattern)
        losses = [window_loss(model, test[i * 1024 : (i + 1) * 1024]) for i in range(32)]
        mean = torch.tensor(losses, dtype=torch.float64).mean()
        print(json.dumps({"pattern": pattern, "perplexity": float(mean.exp())}), flush=True)


if __name__ == "__main__":
    main()
