"""One resident block: run it, measure the inputs of its layers, and let the caller prune them.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, I input features, S sampled tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import repeat

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from llmprune.checkpoint import devices
from llmprune.errors import JobError
from llmprune.methods.base import Propagation
from llmprune.model.anatomy import Anatomy
from llmprune.model.block_site import BlockSite
from llmprune.model.site import Site
from llmprune.tensors import ops
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.walk.observation import Observation
from llmprune.walk.pausing import device_of, paused, replaced
from llmprune.walk.starved import Starved

Call = tuple[tuple[object, ...], dict[str, object]]  # a block's arguments besides its hidden states


class Stage:
    """One block, its input hidden states, and the other arguments that the model passes to it."""

    def __init__(self, anatomy: Anatomy, index: int, hidden: list[Tensor], calls: list[Call]) -> None:
        self.index, self._anatomy = index, anatomy
        self.sites = anatomy.block_sites(index)
        self.hidden, self.calls = hidden, calls
        self.outputs: list[Tensor] | None = None
        self.forward_s = 0.0
        """Seconds of one forward pass of the block, without measuring and pruning."""
        self._tokens = sum(h.shape[0] * h.shape[1] for h in hidden)
        self._sampled = anatomy.kind.sample_tokens
        self._starved = Starved(self)

    @property
    def block(self) -> nn.Module:
        """The block as it is now: it is another once experts are gone."""
        return self._anatomy.blocks[self.index]

    def visit(
        self,
        needs: type[Statistic],
        propagation: Propagation,
        *,
        together: bool,
        dense: Callable[[Site], Iterable[Tensor]] | None = None,
    ) -> Iterator[tuple[Site, Observation]]:
        """Yield every site with its observation; the caller prunes it before it asks for the next.

        Args:
            needs: the statistic to gather.
            propagation: `layer` measures a site after the sites before it are pruned; `block` and `dense`
                measure all sites of the block while it is dense.
            together: only for `layer`. True: one forward pass, in which all batches wait at each site.
                False: the block runs again up to each site, one batch at a time, which needs less memory.
            dense: only for `layer`, gives the inputs of a site in the dense model, to compare with.
        """
        if needs is Nothing:
            yield from ((site, Observation(Nothing(site.inputs), 1)) for site in self.sites)
        elif propagation == "layer":
            yield from self._measured(self.site_inputs(together=together), needs, dense)
        else:
            seen = self.observe(needs)
            if propagation == "block":
                self.outputs = None  # of the dense block; the next one gets those of the pruned block
            for site in self.sites:
                yield site, self._checked(site, seen.get(site.name))

    def site_inputs(self, *, together: bool) -> Iterator[tuple[Site, Iterable[Tensor]]]:
        """Yield every site in the order of computation, with its inputs, one tensor per batch.

        A site computes only when the caller asks for the next one, with the weights it has then. `together`
        is as in `visit`.
        """
        return self._together() if together else self._in_turns()

    def run(self, hidden: list[Tensor] | None = None) -> list[Tensor]:
        """Run the block on all batches; returns one tensor [B, T, D] per batch.

        Args:
            hidden: other states of the same shapes to run it on.
        """
        return [self.output(batch, x) for batch, x in enumerate(self.hidden if hidden is None else hidden)]

    def passed_on(self) -> list[Tensor]:
        """What the next block gets: the outputs so far, or those of the block as it is now."""
        return self.outputs if self.outputs is not None else self.run()

    def angle(self) -> float:
        """The mean angle between the block's input and output, as a share of pi."""
        return ops.mean_angle(self.hidden, self.passed_on())

    def without_site(self, hidden: list[Tensor]) -> list[Tensor]:
        """The same without the block or the part that may go; the whole block runs if it has no such site."""
        with ExitStack() as stack:
            for site in self.sites:
                assert isinstance(site, BlockSite)
                stack.enter_context(site.absent())
            return self.run(hidden)

    def output(self, batch: int, hidden: Tensor | None = None) -> Tensor:
        """What the block puts out for one batch [B, T, D].

        Args:
            batch: its number.
            hidden: other states of the same shape to run it on.
        """
        args, kwargs = self.calls[batch]
        hidden = self.hidden[batch] if hidden is None else hidden
        out = self.block(hidden.to(device_of(self.block)), *args, **kwargs)
        output: Tensor = out[0] if isinstance(out, tuple | list) else out
        return output.to(hidden.device)

    def _measured(
        self,
        reached: Iterator[tuple[Site, Iterable[Tensor]]],
        needs: type[Statistic],
        dense: Callable[[Site], Iterable[Tensor]] | None,
    ) -> Iterator[tuple[Site, Observation]]:
        # Layers that read the same tensor (q, k, v; gate, up) share one statistic.
        last: Iterable[Tensor] | None = None
        measured = set()
        for site, inputs in reached:
            if inputs is not last:
                last, seen = inputs, self._new(site, needs)
                for x, before in zip(inputs, dense(site) if dense else repeat(None), strict=False):
                    seen.update(x, before)
                seen.complete()
                self._starved.feed(site, seen)
            measured.add(site.name)
            yield site, self._checked(site, seen)
        for site in self.sites:
            if site.name not in measured:
                self._checked(site, None)  # raises

    def _now(self) -> float:
        """The time in seconds, read when the device is idle."""
        devices.settle(device_of(self.block))
        return time.perf_counter()

    def _new(self, site: Site, needs: type[Statistic]) -> Observation:
        every = max(1, int(self._tokens * site.share) // self._sampled) if self._sampled else 0
        return Observation(needs(site.inputs, device_of(self.block)), every)

    def entering(self, layer: nn.Module, batch: int) -> Tensor:
        """What enters a module of the block for one batch; what follows is not computed."""
        main = getcurrent()
        run = greenlet(self.output)
        with replaced([layer], [lambda x, *_: main.switch(x)]):
            x: Tensor = run.switch(batch)
        run.throw()
        return x.flatten(0, -2)

    def _checked(self, site: Site, seen: Observation | None) -> Observation:
        if seen is None or not seen.statistic.tokens:
            raise JobError(f"no calibration token reached {site.name}, so its importance is unknown")
        if not seen.statistic.finite():
            raise JobError(f"the calibration activations that enter {site.name} hold NaN or infinity")
        return seen

    def observe(self, needs: type[Statistic]) -> dict[str, Observation]:
        """Run the block once on every batch, and measure the inputs of each site, by its name."""
        seen: dict[str, Observation] = {}
        measuring = 0.0
        last: tuple[Tensor, Observation] | None = None

        def at(site: Site, x: Tensor) -> None:
            nonlocal measuring, last
            start = self._now()
            if last is None or x is not last[0]:
                last = x, seen.setdefault(site.name, self._new(site, needs))
                last[1].update(x)
            elif site.name not in seen:  # it reads the same tensor as the site before it
                seen[site.name] = last[1]
            measuring += self._now() - start

        start = self._now()
        with paused(self.sites, at):
            self.outputs = self.run()
        self.forward_s = self._now() - start - measuring
        for site in self.sites:  # before the first is pruned
            if site.name in seen:
                seen[site.name].complete()
                self._starved.feed(site, seen[site.name])
        return seen

    def _together(self) -> Iterator[tuple[Site, list[Tensor]]]:
        """Yield every site in the order of computation, with its inputs of all batches, in one forward pass.

        Each batch runs in its own greenlet, which stops before every site. So the caller can prune the site
        after it is measured and before it computes, and the block runs only once.
        """
        main = getcurrent()
        inputs: list[Tensor] = []
        runs = [greenlet(self.output) for _ in self.hidden]

        def at(site: Site, x: Tensor) -> None:
            if getcurrent() in runs:  # another stage of the same block may run while these wait
                main.switch((site, x))

        with paused(self.sites, at):
            start = self._now()
            stops = [run.switch(batch) for batch, run in enumerate(runs)]
            self.forward_s += self._now() - start
            while (site := self._common_site(stops)) is not None:
                # Yield the same list object while the tensors are the same: `_measured` then does not repeat.
                if [id(x) for _, x in stops] != [id(x) for x in inputs]:
                    inputs = [x for _, x in stops]
                yield site, inputs
                start = self._now()
                stops = [run.switch() for run in runs]
                self.forward_s += self._now() - start
        self.outputs = stops

    def _common_site(self, stops: Iterable[object]) -> Site | None:
        """The site before which all batches wait, or None at the block's end.

        Args:
            stops: for each batch, the site and its input, or the block's output at the end.
        """
        sites = {stop[0] if isinstance(stop, tuple) else None for stop in stops}
        if len(sites) != 1:
            raise self._diverged()
        return sites.pop()

    def _diverged(self) -> JobError:
        return JobError(
            f"the calibration batches take different ways through block {self.index}, which `layer` "
            "propagation cannot handle; use --propagation block"
        )

    def _in_turns(self) -> Iterator[tuple[Site, Iterable[Tensor]]]:
        """Like `_together`, with one partial forward pass for each group of sites that share an input."""
        for group in self._groups():
            inputs = _Inputs(self, group[0])
            for site in group:
                yield site, inputs
        start = self._now()
        self.outputs = self.run()
        self.forward_s = self._now() - start

    def _groups(self) -> list[list[Site]]:
        """The sites in the order of computation, in groups that read the same tensor."""
        groups: list[list[Site]] = []
        last: list[Tensor] = []

        def at(site: Site, x: Tensor) -> None:
            if last and last[0] is x:
                groups[-1].append(site)
            else:
                groups.append([site])
            last[:] = [x]

        with paused(self.sites, at):
            self.output(0)
        return groups

    def inputs_of(self, site: Site) -> Iterator[Tensor]:
        """Yield the inputs of one site, batch by batch; what follows the site is not computed."""
        for batch in range(len(self.hidden)):
            yield self.input_of(site, batch)

    def input_of(self, site: Site, batch: int) -> Tensor:
        """The inputs of one site for one batch."""
        main = getcurrent()
        run = greenlet(self.output)
        with paused([site], lambda _site, x: main.switch(x)):
            x: Tensor = run.switch(batch)
        if run.dead:
            raise self._diverged()
        run.throw()  # ends the suspended pass: its frames would keep the block's activations in memory
        return x


class _Inputs:
    """The inputs of one site, computed again in each iteration, so that one batch at a time is in memory."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self._stage, self._site = stage, site

    def __iter__(self) -> Iterator[Tensor]:
        return self._stage.inputs_of(self._site)
