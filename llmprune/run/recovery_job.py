"""Check a recovery against both models, and plan it, before the first weight is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import reader, source
from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.resources import resources
from llmprune.errors import RequestError
from llmprune.model.depth import dense_indices, kept_blocks
from llmprune.model.sites.base import sites_of
from llmprune.patterns.unstructured import Unstructured
from llmprune.plugins import name_of
from llmprune.recovery.base import Recovery
from llmprune.report import Report
from llmprune.run import plan
from llmprune.run.asked import Run
from llmprune.run.job import require_apart
from llmprune.run.plan import Plan
from llmprune.run.waiting import placed, with_waiting
from llmprune.text.calibration import Calibration
from llmprune.vocabulary.shared import Shared, shared
from llmprune.walk.demand import Demand


@dataclass(frozen=True)
class RecoveryJob:
    """A checked recovery, with both models open; no weight has been read."""

    recovery: Recovery
    text: Calibration
    run: Run
    earlier: Report
    """Of the pruned checkpoint."""
    pruned: Opened
    dense: Opened
    shared: Shared
    """The tokens that both models have."""

    @property
    def counterparts(self) -> list[int]:
        """The dense block of every pruned block."""
        dense = dense_indices(self.dense.anatomy)
        return [dense.index(index) for index in dense_indices(self.pruned.anatomy)]

    @property
    def plan(self) -> Plan:
        """What walking both models side by side takes; a recovery that holds them whole checks for itself."""
        made = _plan(self.pruned, self.recovery, self.text)
        return with_waiting(made, self.dense) if self.recovery.streams else made


def _plan(pruned: Opened, recovery: Recovery, text: Calibration) -> Plan:
    """What walking both models takes, without what waits of them in memory."""
    _, needs = recovery.walked(pruned.anatomy)
    demand = Demand(needs, "layer", text.samples, walks=recovery.streams)
    length = plan.require_length(pruned.anatomy, text.length)
    one = plan.make(pruned.anatomy, demand, pruned.resources, pruned.bytes, length)
    return dataclasses.replace(one, needed_bytes=2 * one.needed_bytes, host_bytes=2 * one.host_bytes)


def opened(
    folder: Path, earlier: Report, recovery: Recovery, text: Calibration, run: Run, baseline: str | None
) -> tuple[Opened, Opened, Shared]:
    """Open the pruned checkpoint and the dense one, and find the tokens of both; read no weights.

    Raises:
        RequestError: the first cannot be recovered, or was not pruned from the second.
    """
    drafts.require_usable(Path(str(run.out)), resume=run.resume)
    pruned = _open(str(folder), recovery, text, run)
    assert pruned.source is not None
    require_apart(pruned.source, run)
    dense = dense_model(baseline or _dense_name(earlier), recovery, text, run)
    both = _tokens_of_both(pruned, dense)
    if both.cut and not recovery.translates:
        raise RequestError(
            "model",
            f"this recovery compares logits of one vocabulary, and that of {folder} was cut; use distill, or "
            "recover before that",
        )
    _require_alike(pruned, dense, cut=both.cut)
    if run.device_map is not None:
        made = _plan(pruned, recovery, text)
        # What trains must fit into half of what is free.
        needed = made.needed_bytes if recovery.streams else pruned.resources.available // 2
        dense = placed(dense, run.device_map, needed, made.host_bytes)
    return pruned, dense, both


def _open(name: str, recovery: Recovery, text: Calibration, run: Run) -> Opened:
    found = source.find(name, trust_remote_code=run.trust_remote_code)
    try:
        anatomy = reader.blueprint(found, sites_of(Unstructured()))
        pattern, _ = recovery.walked(anatomy)
        if pattern != Unstructured():
            anatomy = reader.blueprint(found, sites_of(pattern))
    except RequestError as error:
        if error.field != "pattern":
            raise
        raise RequestError(
            "recovery",
            f"{name_of(recovery)} was asked, and the parts of this model that it refits are not known; use "
            "distill",
        ) from error
    plan.require_length(anatomy, text.length)
    where = resources(run.device, run.dtype, run.max_memory, found.size[1], text=True)
    return Opened(anatomy, found, where, run.trust_remote_code)


def dense_model(name: str, recovery: Recovery, text: Calibration, run: Run) -> Opened:
    """Open the dense model.

    Raises:
        RequestError: there is none of that name.
    """
    try:
        return _open(name, recovery, text, run)
    except RequestError as error:
        raise RequestError("baseline", f"the dense model is needed, and {error}") from error


def _dense_name(earlier: Report) -> str:
    """Name of the model that was pruned, with its revision."""
    name, revision = earlier.model["source"], earlier.model.get("revision")
    return f"{name}@{revision}" if revision else str(name)


def _tokens_of_both(pruned: Opened, dense: Opened) -> Shared:
    """What the vocabularies have in common, where the pruned one was cut from the other.

    Raises:
        RequestError: a tokenizer cannot be loaded.
    """
    if pruned.anatomy.vocabulary >= dense.anatomy.vocabulary:
        return Shared()
    ours, theirs = (model.tokenizer(None).get_vocab() for model in (pruned, dense))
    return shared(ours, theirs) if ours.keys() < theirs.keys() else Shared()


def _require_alike(pruned: Opened, dense: Opened, *, cut: bool) -> None:
    """Refuse a dense model from which this one, perhaps with its vocabulary cut, cannot have been pruned.

    Raises:
        RequestError: it names the first size in which they differ.
    """
    ours, theirs = pruned.anatomy, dense.anatomy
    sizes: list[tuple[str, object, object]] = [
        ("family", ours.family, theirs.family),
        ("hidden size", ours.hidden_size, theirs.hidden_size),
    ]
    if not cut:
        sizes.append(("vocabulary", ours.vocabulary, theirs.vocabulary))
    if kept := kept_blocks(ours):
        sizes.append(("blocks", kept, sorted(set(kept) & set(dense_indices(theirs)))))
    else:
        sizes.append(("depth", len(ours.blocks), len(theirs.blocks)))
    for what, own, other in sizes:
        if own != other:
            raise RequestError(
                "baseline",
                f"the pruned model has the {what} {own}, and {dense.name} has {other}; name the "
                "model that it was pruned from",
            )
