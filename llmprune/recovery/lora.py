"""Low-rank adapters, wider in the blocks that matter more, trained on text and merged into the weights.

CFSP's recovery (Wang et al., 2025, arXiv:2409.13199), whose code was never released: the rank of a block's
adapters (LoRA, arXiv:2106.09685) follows its influence, the angle by which it turns its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from llmprune.allocation.block_influence import BlockInfluence, influence
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.loading import load
from llmprune.model.anatomy import Anatomy
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.text.windows import batched
from llmprune.training.steps import Training
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Lora(Recovery):
    """Holds the whole pruned model in memory. Zeros of a masked or padded checkpoint stay zeros."""

    knows_parts: ClassVar = False

    rank: Annotated[int, Field(ge=1)] = 8
    """Mean over the blocks."""

    alpha: Annotated[int, Field(ge=1)] = 2
    """Scale of the adapters, the same for all ranks (alpha / r in the paper's terms)."""

    epochs: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    batch: Annotated[int, Field(ge=1)] = 2
    """Windows in a step."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def recover(self, task: Task) -> Recovered:
        """Train, merge and save."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise RequestError("recovery", "lora needs peft; run pip install llmprune[recover]") from error
        assert task.pruned.source is not None
        if not task.pruned.fits_whole():
            raise JobError(
                "lora trains the whole pruned model in memory, where it does not fit twice; use reconstruct, "
                "which needs one block at a time"
            )
        device, dtype = task.pruned.resources.device, task.pruned.plan.dtype
        model, _ = load(str(task.pruned.source.folder), device=str(device), dtype=dtype, kernels="none")
        linear = Anatomy(model)
        # A padded checkpoint's zeros stand for units that are gone.
        kept = task.layout in (None, "padded")
        zeros = {site.name: site.weight == 0 for site in linear.sites} if kept else {}
        ranks = self._ranks(linear, task)
        by_layer = {site.name: ranks[site.block] for site in linear.sites}
        torch.manual_seed(self.seed)
        with torch.enable_grad():
            adapted = get_peft_model(
                model,
                LoraConfig(
                    r=self.rank,
                    lora_alpha=self.alpha * self.rank,
                    target_modules=list(by_layer),
                    rank_pattern=by_layer,
                    alpha_pattern={name: self.alpha * rank for name, rank in by_layer.items()},
                    task_type="CAUSAL_LM",
                ),
            )
            training = Training(adapted, self.learning_rate, self.seed, task.draft.state)
            training.run(self._batches(task.tokens), "training the adapters")
        merged: Any = adapted.merge_and_unload()
        merged.eval()
        for site in Anatomy(merged).sites:
            if site.name in zeros:
                site.weight.masked_fill_(zeros[site.name], 0)
        _store_in(merged, task.pruned.source.size[1])
        task.draft.write_model(merged)
        _store_in(merged, getattr(torch, dtype))  # rounded as it was saved
        logits = merged(task.pruned.probe().to(device), use_cache=False).logits
        return Recovered({"ranks": ranks, "losses": training.losses}, logits)

    def _ranks(self, anatomy: Anatomy, task: Task) -> list[int]:
        """The rank of every block's adapters, at least 1."""
        batches = batched(task.tokens, task.pruned.plan.batch)
        angles = []
        for stage in Walk(anatomy, Store(anatomy), batches, task.pruned.probe()).stages(
            "weighing the blocks"
        ):
            stage.outputs = stage.run()
            angles.append(influence(stage))
        shares = BlockInfluence().weights(torch.tensor(angles, dtype=torch.float64))
        return [max(1, round(self.rank * share)) for share in shares.tolist()]

    def _batches(self, tokens: Tensor) -> list[Tensor]:
        """The windows of every step."""
        order = torch.Generator().manual_seed(self.seed)
        return [
            tokens[picked]
            for _ in range(self.epochs)
            for picked in torch.randperm(len(tokens), generator=order).split(self.batch)
        ]


def _store_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights, and not the buffers, which every load computes anew in full precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
