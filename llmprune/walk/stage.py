"""One resident block: run it, tell what enters each of its layers, and let the caller prune them.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, I input features, S sampled tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from llmprune.errors import JobError
from llmprune.methods.base import Propagation
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.walk.pausing import device_of, paused

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block receives besides its hidden states


@dataclass
class Seen:
    """What calibration saw enter one layer: a summary of all tokens, and a few of them [S, I]."""

    statistic: Statistic
    every: int
    rows: list[Tensor] = field(default_factory=list)

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [..., I]."""
        x = x.reshape(-1, x.shape[-1])
        # Evenly over all batches, and not at their starts: a sequence's first token is unlike the others.
        start = (self.every // 2 - self.statistic.tokens) % self.every
        self.statistic.update(x)
        self.rows.append(x[start :: self.every].clone())

    @property
    def sample(self) -> Tensor:
        """[S, I]"""
        return torch.cat(self.rows)


class Stage:
    """One block, the hidden states that enter it, and what the model passes along with them."""

    def __init__(self, anatomy: Anatomy, index: int, hidden: list[Tensor], calls: list[Call]) -> None:
        self.index, self.block = index, anatomy.blocks[index]
        self.sites = anatomy.block_sites(index)
        self.hidden, self.calls = hidden, calls
        self.outputs: list[Tensor] | None = None
        self.forward_s = 0.0
        """Seconds that one plain forward of the block took, measuring and pruning not counted."""
        self._every = max(1, sum(h.shape[0] * h.shape[1] for h in hidden) // anatomy.kind.sample)

    def visit(
        self, needs: type[Statistic], propagation: Propagation, *, together: bool
    ) -> Iterator[tuple[Site, Seen]]:
        """Yield every site with what it saw; the caller prunes it before asking for the next.

        Args:
            needs: the statistic to gather.
            propagation: `layer` measures a site on the outputs of those pruned before it; `block` and
                `dense` measure all sites of the block while it is dense.
            together: for `layer`: one forward, in which all batches wait at each site. Otherwise the block
                is run anew up to each site, which needs the activations of one batch only.
        """
        if needs is Nothing:
            yield from ((site, Seen(Nothing(site.inputs), 1)) for site in self.sites)
        elif propagation == "layer":
            yield from self._measured(self.arrivals(together=together), needs)
        else:
            seen = self._observe(needs)
            if propagation == "block":
                self.outputs = None  # the next block gets what the pruned block will put out
            for site in self.sites:
                yield site, self._checked(site, seen.get(site.name))

    def arrivals(self, *, together: bool) -> Iterator[tuple[Site, Iterable[Tensor]]]:
        """Every site in the order data reaches it, with its inputs, one tensor per batch.

        The site computes with the weights that it has when the caller asks for the next; `together` is as in
        `visit`.
        """
        return self._together() if together else self._in_turns()

    def run(self) -> list[Tensor]:
        """The block's outputs, one [B, T, D] tensor per batch."""
        return [self._output(batch) for batch in range(len(self.hidden))]

    def _output(self, batch: int) -> Tensor:
        args, kwargs = self.calls[batch]
        hidden = self.hidden[batch]
        out = self.block(hidden.to(device_of(self.block)), *args, **kwargs)
        output: Tensor = out[0] if isinstance(out, tuple) else out
        return output.to(hidden.device)

    def _measured(
        self, arrivals: Iterator[tuple[Site, Iterable[Tensor]]], needs: type[Statistic]
    ) -> Iterator[tuple[Site, Seen]]:
        # Layers that read the same tensor (q, k, v; gate, up) share one statistic.
        last: Iterable[Tensor] | None = None
        reached = set()
        for site, inputs in arrivals:
            if inputs is not last:
                last, seen = inputs, self._new(site, needs)
                for x in inputs:
                    seen.update(x)
            reached.add(site.name)
            yield site, self._checked(site, seen)
        for site in self.sites:
            if site.name not in reached:
                self._checked(site, None)

    def _now(self) -> float:
        """Seconds, once the device has done all it was given."""
        device = device_of(self.block)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def _new(self, site: Site, needs: type[Statistic]) -> Seen:
        return Seen(needs(site.inputs, device_of(self.block)), self._every)

    def _checked(self, site: Site, seen: Seen | None) -> Seen:
        if seen is None or not seen.statistic.tokens:
            raise JobError(f"no calibration token reached {site.name}, so nothing says what may go there")
        if not seen.statistic.finite():
            raise JobError(f"the calibration activations that enter {site.name} hold NaN or infinity")
        return seen

    def _observe(self, needs: type[Statistic]) -> dict[str, Seen]:
        """Run the block once on every batch, and summarise what enters each site."""
        seen: dict[str, Seen] = {}
        measuring = 0.0
        last: list[Any] = [None, None]

        def at(site: Site, x: Tensor) -> None:
            nonlocal measuring
            start = self._now()
            if x is last[0] and site.name not in seen:
                seen[site.name] = last[1]
            elif x is not last[0]:
                last[:] = x, seen.setdefault(site.name, self._new(site, needs))
                last[1].update(x)
            measuring += self._now() - start

        start = self._now()
        with paused(self.sites, at):
            self.outputs = self.run()
        self.forward_s = self._now() - start - measuring
        return seen

    def _together(self) -> Iterator[tuple[Site, list[Tensor]]]:
        """Every site in the order data reaches it, with its inputs of all batches, from one forward.

        Each batch runs in a greenlet of its own that stops at every site. So the caller can prune the site
        between its measurement and its use, and the block is run only once.
        """
        main = getcurrent()
        inputs: list[Tensor] = []
        with paused(self.sites, lambda site, x: main.switch((site, x))):
            start = self._now()
            runs = [greenlet(self._output) for _ in self.hidden]
            arrived = [run.switch(batch) for batch, run in enumerate(runs)]
            self.forward_s += self._now() - start
            while (site := self._where(runs, arrived)) is not None:
                if [id(x) for _, x in arrived] != [id(x) for x in inputs]:
                    inputs = [x for _, x in arrived]
                yield site, inputs
                start = self._now()
                arrived = [run.switch() for run in runs]
                self.forward_s += self._now() - start
        self.outputs = arrived

    def _where(self, runs: list[greenlet], arrived: list[Any]) -> Site | None:
        """The site at which all batches wait, or None at the block's end."""
        sites = {None if run.dead else stop[0] for run, stop in zip(runs, arrived, strict=True)}
        if len(sites) != 1:
            raise self._parted()
        return sites.pop()

    def _parted(self) -> JobError:
        return JobError(
            f"the calibration batches take different ways through block {self.index}, which `layer` "
            "propagation cannot follow; use --propagation block"
        )

    def _in_turns(self) -> Iterator[tuple[Site, Iterable[Tensor]]]:
        """Like `_together`, from one forward per group of sites with the same input, abandoned there."""
        for group in self._groups():
            inputs = _Inputs(self, group[0])
            for site in group:
                yield site, inputs
        start = self._now()
        self.outputs = self.run()
        self.forward_s = self._now() - start

    def _groups(self) -> list[list[Site]]:
        """The sites in the order data reaches them, those that read the same tensor side by side."""
        groups: list[list[Site]] = []
        last: list[Tensor] = []

        def at(site: Site, x: Tensor) -> None:
            if last and last[0] is x:
                groups[-1].append(site)
            else:
                groups.append([site])
            last[:] = [x]

        with paused(self.sites, at):
            self._output(0)
        return groups

    def inputs_of(self, site: Site) -> Iterator[Tensor]:
        """What enters one site, batch by batch; the rest of the block is not run."""
        main = getcurrent()
        for batch in range(len(self.hidden)):
            run = greenlet(self._output)
            with paused([site], lambda _site, x: main.switch(x)):
                x = run.switch(batch)
            if run.dead:
                raise self._parted()
            run.throw()
            yield x


class _Inputs:
    """The inputs of one site, computed each time they are asked for."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self._stage, self._site = stage, site

    def __iter__(self) -> Iterator[Tensor]:
        return self._stage.inputs_of(self._site)
