"""Compute a module of experts one expert after another, so that what reaches each of them can be seen.

Letters used in shapes: T tokens, D hidden size, K experts chosen for a token, R rows that reach one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import experts_of, projections
from llmprune.model.site import Site
from llmprune.model.whole_experts import WholeExperts

At = Callable[[Site, Tensor], object]


class ExpertLoop:
    """What transformers' grouped kernel computes, in the same order of sums.

    Every expert is visited, also without tokens, so that all batches stop at the same sites.

    Args:
        layer: holds the experts.
        sites: of these experts; `at(site, rows)` is called before each matrix computes, and for all experts
            together, with the norms of what they add and of what they put out [T, 2 E], after the last.
        at: may change the weights of the site.
    """

    def __init__(self, layer: Any, sites: list[Site] | None = None, at: At | None = None) -> None:
        self._layer, self._at = layer, at
        self._first, self._last = projections(layer)
        self._sites = {(s.expert, s.leaf): s for s in sites or () if isinstance(s, ExpertSite)}
        self._whole = next((s for s in sites or () if isinstance(s, WholeExperts)), None)

    def __call__(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum [T, D] of the chosen experts' outputs.

        Args:
            x: the tokens [T, D].
            index: the experts of each token [T, K]; a number beyond the last adds nothing.
            weight: of their outputs [T, K].
        """
        return self.outputs(x, index, weight).sum(1).to(x.dtype)

    def outputs(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """What each chosen expert adds to a token [T, K, D]."""
        dtype = torch.promote_types(x.dtype, weight.dtype)
        outputs = x.new_zeros(*index.shape, x.shape[-1], dtype=dtype)
        experts = len(getattr(self._layer, self._last))
        norms = x.new_zeros(2, len(x), experts, dtype=torch.float32)
        for expert in range(experts):
            token, place = torch.where(index == expert)
            y = self._linear(expert, self._last, self.between(expert, x[token], self._at))
            if self._layer.has_post_expert_norm:
                y = self._layer.post_expert_norm(y)
            outputs[token, place] = added = y * weight[token, place, None]
            if self._whole:
                norms[0, token, expert] = added.float().norm(dim=-1)
                norms[1, token, expert] = y.float().norm(dim=-1)
        if self._whole and self._at:
            self._at(self._whole, torch.cat([*norms], dim=-1))
        return outputs

    def between(self, expert: int, x: Tensor, at: At | None = None) -> Tensor:
        """What enters the last matrix of an expert, given the rows [R, D] that enter its first."""
        layer = self._layer
        y = self._linear(expert, self._first, x, at)
        activated: Tensor = layer._apply_gate(y) if layer.has_gate else layer.act_fn(y)
        if at and (site := self._sites.get((expert, self._last))):
            at(site, activated)
        return activated

    def _linear(self, expert: int, leaf: str, x: Tensor, at: At | None = None) -> Tensor:
        if at and (site := self._sites.get((expert, leaf))):
            at(site, x)
        layer = self._layer
        matrix = getattr(layer, leaf)[expert]
        y = x @ matrix if layer.is_transposed else functional.linear(x, matrix)
        return y + getattr(layer, f"{leaf}_bias")[expert] if layer.has_bias else y


@contextmanager
def looped(block: nn.Module) -> Iterator[None]:
    """Compute the experts of a block in a loop, whether they are observed or not, while the context is open.

    Otherwise a resumed run, which does not observe the blocks that are finished, would see other sums.
    """
    layers = [layer for _, layer in experts_of(block)]
    for layer in layers:
        layer.forward = ExpertLoop(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
