"""Low-rank adapters, wider in the blocks that matter more, trained on text and merged into the weights.

CFSP's recovery (Wang et al., 2025, arXiv:2409.13199), whose code was never released: the rank of a block's
adapters (LoRA, arXiv:2106.09685) follows its influence, the angle by which it turns its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from llmprune import calibration
from llmprune.allocation.block_influence import BlockInfluence, influence
from llmprune.anatomy import Anatomy
from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.loading import load
from llmprune.progress import track
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.walk import Walk

WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Lora(Recovery):
    """Holds the whole pruned model in memory. Zeros of a masked checkpoint stay zeros."""

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
        device, dtype = task.pruned.resources.device, task.pruned.plan.dtype
        model, _ = load(str(task.pruned.source.folder), device=str(device), dtype=dtype, kernels="none")
        linear = Anatomy(model)
        zeros = {site.name: site.weight == 0 for site in linear.sites} if task.masked else {}
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
            losses = self._train(adapted, task.tokens)
        merged: Any = adapted.merge_and_unload()
        merged.eval()
        for site in Anatomy(merged).sites:
            if task.masked:
                site.weight.masked_fill_(zeros[site.name], 0)
        _store_in(merged, task.pruned.source.size[1])
        merged.save_pretrained(task.draft.folder)
        _store_in(merged, getattr(torch, dtype))  # rounded as it was saved
        logits = merged(task.pruned.probe().to(device), use_cache=False).logits
        return Recovered({"ranks": ranks, "losses": losses}, logits)

    def _ranks(self, anatomy: Anatomy, task: Task) -> list[int]:
        """The rank of every block's adapters, at least 1."""
        batches = calibration.batched(task.tokens, task.pruned.plan.batch)
        angles = []
        for stage in Walk(anatomy, Store(anatomy), batches, task.pruned.probe()).stages(
            "weighing the blocks"
        ):
            stage.outputs = stage.run()
            angles.append(influence(stage))
        shares = BlockInfluence().weights(torch.tensor(angles, dtype=torch.float64))
        return [max(1, round(self.rank * share)) for share in shares.tolist()]

    def _train(self, model: nn.Module, tokens: Tensor) -> list[float]:
        """The loss of every step."""
        model.train()
        steps = self.epochs * -(-len(tokens) // self.batch)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        warm = max(1, round(WARM_UP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
        losses: list[float] = []
        order = torch.Generator().manual_seed(self.seed)
        batches = [
            tokens[picked]
            for _ in range(self.epochs)
            for picked in torch.randperm(len(tokens), generator=order).split(self.batch)
        ]
        device = trained[0].device
        for ids in track(batches, "training the adapters"):
            loss = self._loss(model, ids.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    def _loss(self, model: Any, ids: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


def _store_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights, and not the buffers, which every load computes anew in full precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
