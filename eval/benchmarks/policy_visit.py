"""How long the policy's training stays in one block of a given shape, forwards not counted; random weights.

A whole training visits every block `passes` times, and looks at it once more without learning.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from llmprune.methods.base import Weights
from llmprune.methods.prunenet import PruneNet
from llmprune.methods.prunenet.policy import shape
from llmprune.methods.prunenet.training import Trainer
from llmprune.tensors.statistics import Gram


@torch.no_grad()
def main() -> None:
    """Time one block; Llama-2-7B's by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=11008)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    where = torch.device(asked.device)
    rows = tuple(torch.randn(asked.channels, asked.hidden, device=where) for _ in range(2))
    weights = Weights(torch.randn(asked.hidden, asked.channels, device=where), 0, asked.channels, rows)
    statistic = Gram(asked.channels, where)
    start = time.perf_counter()
    for _ in range(asked.tokens // 1024):
        statistic.update(torch.randn(1024, asked.channels, device=where))
    gram_s = time.perf_counter() - start
    trainer = Trainer(PruneNet(), shape(weights))
    start = time.perf_counter()
    trainer.visit(weights, statistic, learning=True)
    print(json.dumps({**vars(asked), "gram_s": gram_s, "visit_s": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
