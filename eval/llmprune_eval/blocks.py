"""What one new token takes, part by part: a block, its channels, and a row of the vocabulary, on this device.

Speed does not depend on what the weights are. So models of random weights that lack half of one part take
turns with a whole one, and the ratio of a pair says what that half takes, whatever else slows both.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from llmprune.checkpoint import reader, source
from llmprune.checkpoint.resources import Resources, resources
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.model import unit_config
from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import changed
from llmprune.model.depth import with_fewer_blocks
from llmprune.model.experts import is_mixture
from llmprune.model.sites.base import sites_of
from llmprune.model.widths import unit_sites
from llmprune.patterns.blocks import Blocks
from llmprune.patterns.units import Units
from llmprune.progress import say
from llmprune.vocabulary.settings import SIZE
from llmprune_eval import ratios
from llmprune_eval.runner import Load, Runner

LOAD = Load(prompt=32, new_tokens=8, repeats=15, seconds=60.0)
Settings = dict[str, object]


@dataclass(frozen=True)
class Latencies:
    """Seconds that one new token takes at batch 1, and the shares of them that parts of the model take."""

    token_s: float
    block: float
    """One block, on average."""

    channels: float
    """All channels of the feed-forward network of one block; 0 where they are not known, or in experts."""

    row: float
    """One row of the vocabulary."""

    protocol: str

    def rows(self) -> list[tuple[str, str]]:
        """The same as a table."""
        return [
            ("one token", f"{1000 * self.token_s:.2f} ms"),
            ("one block", f"{self.block:.2%} of it"),
            ("its channels", f"{self.channels:.2%}" if self.channels else "not known"),
            ("1,000 rows of the vocabulary", f"{1000 * self.row:.2%}"),
            ("protocol", self.protocol),
        ]


def measure(name: str, *, device: str, dtype: str, trust: bool) -> Latencies:
    """Measure what the parts of a model take; none of its weights is read.

    Args:
        name: a folder, a .gguf file or a Hub id.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: a torch dtype by name, or `auto`.
        trust: whether code that comes with it may run.

    Raises:
        RequestError: there is no such checkpoint, or its blocks differ in size.
    """
    found = source.find(name, trust_remote_code=trust)
    where = resources(device, dtype, None, found.size[1], text=True)
    anatomy = reader.blueprint(found, sites_of(Blocks()))
    settings: Settings = anatomy.model.config.to_dict()
    if settings.get("per_layer_config"):
        raise RequestError("model", f"the blocks of {name} differ in size; measure the dense model's")
    whole = _random(settings, anatomy, where)
    depth, rows = len(anatomy.blocks), anatomy.vocabulary
    gone = depth // 2
    fewer = with_fewer_blocks(settings, anatomy, list(range(depth - gone)))
    shorter = changed(anatomy.model, settings, lambda own: own | {SIZE: rows // 2} | _no_ids(own))
    seconds: list[float] = []

    def half(variant: Settings, label: str) -> float:
        say(f"measuring a model without half of its {label}")
        pairs = _pairs(whole, _random(variant, anatomy, where))
        seconds.extend(first for first, _ in pairs)
        return max(0.0, 1 - ratios.of(pairs)["ratio"])

    block = half(fewer, "blocks") / gone if gone else 0.0
    row = half(shorter, "vocabulary") / (rows - rows // 2)
    narrow = _narrow(found, settings)
    channels = half(narrow[0], "channels") / narrow[1] / depth if narrow else 0.0
    token = statistics.median(seconds) / LOAD.new_tokens
    return Latencies(token, block, min(channels, block), row, _protocol(where))


def _random(settings: Settings, anatomy: Anatomy, where: Resources) -> Runner:
    """A model of these sizes, of the class of the one that is measured."""
    like = anatomy.model
    with where.device:
        model = type(like)(type(like.config).from_dict(dict(settings)))
    return Runner(model.to(where.device, where.dtype).eval(), None, LOAD, kernels=False)


def _no_ids(settings: Settings) -> Settings:
    """No special tokens, whose ids may be beyond a shorter table."""
    return {key: None for key in settings if key.endswith("_token_id")}


def _narrow(found: Source, settings: Settings) -> tuple[Settings, float] | None:
    """The sizes without about half of the channels, and the share that is gone; None where none can go."""
    try:
        anatomy: Anatomy = reader.blueprint(found, sites_of(Units(parts="ffn")))
    except RequestError:
        return None
    sites = unit_sites(anatomy)
    if not sites or any(map(is_mixture, anatomy.blocks)):
        return None
    stay = max(1, sites[0].units // 2)
    fields = unit_config.size_fields(anatomy, sites[0], stay)
    return changed(anatomy.model, settings, lambda own: own | fields), 1 - stay / sites[0].units


def _pairs(whole: Runner, less: Runner) -> list[tuple[float, float]]:
    """Seconds of both, in alternating order, after a warm-up; fewer pairs where the machine is slow."""
    pairs: list[tuple[float, float]] = []
    begin = time.monotonic()
    for number in range(LOAD.repeats + 1):
        if len(pairs) > ratios.FEWEST and time.monotonic() - begin > LOAD.seconds:
            break
        taken: dict[int, float] = {}
        for place, runner in [(0, whole), (1, less)][:: -1 if number % 2 else 1]:
            runner.prefill()
            taken[place] = runner.decode()["decode"]
        pairs.append((taken[0], taken[1]))
    return pairs[1:]


def _protocol(where: Resources) -> str:
    many = f"{LOAD.new_tokens} new tokens after {LOAD.prompt}"
    return (
        f"batch 1, {many}, {where.dtype_name}, {where.name}, eager; medians of up to {LOAD.repeats} pairs in "
        "alternating order, random weights"
    )
