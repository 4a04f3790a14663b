"""Walking a model block by block computes what the model computes, and measures what it says it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune.checkpoint.store import Store
from llmprune.errors import JobError
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.linear import LinearLayers
from llmprune.tensors.statistics import Gram, InputMoments, InputNorm, Nothing, Statistic
from llmprune.walk.observation import Observation
from llmprune.walk.pausing import paused, replaced
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk
from tests import tiny

PROBE = torch.randint(0, tiny.VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, tiny.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(2))
BATCHES = list(TOKENS.split(2))  # the last one is smaller
WAYS = [("dense", False), ("block", False), ("layer", True), ("layer", False)]
every_way = pytest.mark.parametrize(
    ("propagation", "together"), WAYS, ids=["dense", "block", "together", "in_turns"]
)
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def walked(model: PreTrainedModel, batches: list[Tensor] = BATCHES) -> Walk:
    anatomy = Anatomy(model, LinearLayers())
    return Walk(Store(anatomy), batches, PROBE)


def stages(model: PreTrainedModel) -> Iterator[Stage]:
    return walked(model).stages("walking")


def logits(model: PreTrainedModel) -> Tensor:
    return model(PROBE, use_cache=False).logits


def passing(
    model: PreTrainedModel, modules: list[nn.Module], batches: list[Tensor] = BATCHES
) -> list[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of each module, batch by batch, recorded while the whole model runs."""
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in modules]

    def noting(number: int) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            seen[number].append((entered.clone(), (out[0] if isinstance(out, tuple) else out).clone()))

        return note

    hooks = [m.register_forward_hook(noting(i), with_kwargs=True) for i, m in enumerate(modules)]
    for ids in batches:
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def halve(site: Site) -> None:
    """Prune a site visibly: set every second input to zero."""
    matrix = site.matrix(site.layer.weight.data).clone()
    matrix[:, ::2] = 0
    site.layer.weight = nn.Parameter(site.matrix(matrix).contiguous(), requires_grad=False)


def norms_of(entering: list[tuple[Tensor, Tensor]], features: int) -> Tensor:
    norm = InputNorm(features)
    for x, _ in entering:
        norm.update(x.reshape(-1, features))
    return norm.value


@every_family
@every_way
def test_walking_without_pruning_reproduces_the_model(family: str, propagation: Any, together: bool) -> None:
    model = tiny.model(family)
    expected = logits(model)
    blocks = passing(model, list(Anatomy(model, LinearLayers()).blocks))
    walk = walked(model)
    met = []
    for stage in walk.stages("walking"):
        met += [site.name for site, _ in stage.visit(InputNorm, propagation, together=together)]
        outputs = stage.outputs if stage.outputs is not None else stage.run()
        assert same(stage.hidden, [x for x, _ in blocks[stage.index]])
        assert same(outputs, [y for _, y in blocks[stage.index]])
    assert sorted(met) == sorted(site.name for site in Anatomy(model, LinearLayers()).sites)
    assert torch.equal(walk.logits(), expected)
    assert torch.equal(logits(model), expected)


@every_family
def test_walking_a_streamed_checkpoint_reproduces_the_model(
    family: str, checkpoints: tiny.Checkpoints
) -> None:
    folder = checkpoints(family)
    expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    store = tiny.streamed(folder)
    walk = Walk(store, BATCHES, PROBE)
    for stage in walk.stages("walking"):
        assert not any(p.is_meta for p in stage.block.parameters())
        for _ in stage.visit(InputNorm, "layer", together=True):
            pass
    assert torch.equal(walk.logits(), expected)
    assert all(p.is_meta for p in store.anatomy.blocks.parameters())


@every_family
def test_every_site_is_measured_on_what_really_enters_it(family: str) -> None:
    model = tiny.model(family)
    sites = Anatomy(model, LinearLayers()).sites
    entering = passing(model, [site.layer for site in sites])
    expected = {s.name: norms_of(x, s.inputs) for s, x in zip(sites, entering, strict=True)}
    for propagation, together in WAYS:
        for stage in stages(tiny.model(family)):
            for site, seen in stage.visit(InputNorm, propagation, together=together):
                assert seen.statistic.tokens == TOKENS.numel()
                assert torch.equal(seen.statistic.value, expected[site.name])


def test_a_sample_of_the_inputs_is_kept_in_the_order_of_the_tokens() -> None:
    model = tiny.model("llama")
    entering = passing(model, [model.model.layers[0].mlp.down_proj])[0]
    visit = next(stages(model)).visit(InputNorm, "layer", together=True)
    [down] = [seen for site, seen in visit if site.kind == "mlp.down_proj"]
    assert torch.equal(down.sample, torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in entering]))


@every_family
@pytest.mark.parametrize("needs", [InputNorm, InputMoments, Gram])
def test_all_batches_together_or_in_turns_is_the_same_computation(
    family: str, needs: type[Statistic]
) -> None:
    def run(together: bool) -> list[Any]:
        found: list[Any] = []
        for stage in stages(tiny.model(family)):
            for site, seen in stage.visit(needs, "layer", together=together):
                found.append((site.name, seen.statistic.tokens, seen.sample, *tensors_of(seen.statistic)))
                halve(site)
            found.append(("outputs", 0, *stage.outputs))
        return found

    once, in_turns = run(together=True), run(together=False)
    assert [(name, tokens) for name, tokens, *_ in once] == [(name, tokens) for name, tokens, *_ in in_turns]
    assert all(same(list(a), list(b)) for (_, _, *a), (_, _, *b) in zip(once, in_turns, strict=True))


def tensors_of(statistic: Statistic) -> list[Tensor]:
    found = [value for value in vars(statistic).values() if isinstance(value, Tensor)]
    assert found
    return found


@every_way
def test_sites_that_read_the_same_tensor_share_what_was_seen(propagation: Any, together: bool) -> None:
    for stage in stages(tiny.model("llama")):
        seen = {site.kind: s for site, s in stage.visit(InputNorm, propagation, together=together)}
        q, k, v, o = (seen[f"self_attn.{kind}_proj"] for kind in "qkvo")
        gate, up, down = (seen[f"mlp.{kind}_proj"] for kind in ("gate", "up", "down"))
        assert q is k is v
        assert gate is up
        assert len({id(one) for one in (q, o, gate, down)}) == 4
        assert all(one.statistic.tokens == TOKENS.numel() for one in seen.values())


def pruned_first_block(propagation: Any, together: bool) -> tuple[dict[str, Observation], list[Tensor]]:
    """Prune the sites of block 0 in order; return their observations and the inputs of block 1."""
    walk = stages(tiny.model("llama"))
    seen = {}
    for site, one in next(walk).visit(InputNorm, propagation, together=together):
        seen[site.name] = one
        halve(site)
    return seen, next(walk).hidden


def first_block_of(pruned: Callable[[Site], bool]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Norms and inputs of block 1 from the whole model, with some sites of block 0 pruned first."""
    model = tiny.model("llama")
    sites = Anatomy(model, LinearLayers()).block_sites(0)
    for site in filter(pruned, sites):
        halve(site)
    entering = passing(model, [*(site.layer for site in sites), model.model.layers[1]])
    norms = {s.name: norms_of(x, s.inputs) for s, x in zip(sites, entering, strict=False)}
    return norms, [x for x, _ in entering[-1]]


def test_block_propagation_measures_the_dense_block_and_passes_on_the_pruned_outputs() -> None:
    dense, dense_outputs = first_block_of(lambda site: False)
    _, pruned_outputs = first_block_of(lambda site: True)
    assert not same(dense_outputs, pruned_outputs)
    seen, handed_on = pruned_first_block("block", together=False)
    assert all(torch.equal(seen[name].statistic.value, norm) for name, norm in dense.items())
    assert same(handed_on, pruned_outputs)


def test_dense_propagation_passes_on_the_dense_outputs() -> None:
    dense, dense_outputs = first_block_of(lambda site: False)
    seen, handed_on = pruned_first_block("dense", together=False)
    assert all(torch.equal(seen[name].statistic.value, norm) for name, norm in dense.items())
    assert same(handed_on, dense_outputs)


@pytest.mark.parametrize("together", [True, False])
def test_layer_propagation_measures_each_site_behind_those_pruned_before_it(together: bool) -> None:
    seen, handed_on = pruned_first_block("layer", together)
    names = list(seen)
    for number, name in enumerate(names):
        norms, _ = first_block_of(lambda site, before=names[:number]: site.name in before)
        assert torch.equal(seen[name].statistic.value, norms[name])
    dense, _ = first_block_of(lambda site: False)
    assert not torch.equal(seen[names[-1]].statistic.value, dense[names[-1]])
    assert same(handed_on, first_block_of(lambda site: True)[1])


@every_way
def test_the_probe_passes_through_the_blocks_as_the_caller_leaves_them(
    propagation: Any, together: bool
) -> None:
    model = tiny.model("llama")
    dense = logits(model)
    walk = walked(model)
    for stage in walk.stages("walking"):
        for site, _ in stage.visit(InputNorm, propagation, together=together):
            halve(site)
    assert torch.equal(walk.logits(), logits(model))
    assert not torch.equal(walk.logits(), dense)


def test_a_method_that_needs_nothing_gets_every_site_without_a_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = next(stages(tiny.model("llama")))
    monkeypatch.setattr(stage.block, "forward", None)
    found = [(site, seen.rows) for site, seen in stage.visit(Nothing, "layer", together=True)]
    assert found == [(site, []) for site in stage.sites]


@every_way
@pytest.mark.parametrize("needs", [InputNorm, InputMoments, Gram])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("model.embed_tokens", r"model\.layers\.0\.self_attn\.q_proj"),
        ("model.layers.1.input_layernorm", r"model\.layers\.1\.self_attn\.q_proj"),
        ("model.layers.1.post_attention_layernorm", r"model\.layers\.1\.mlp\.gate_proj"),
    ],
)
def test_activations_that_are_no_numbers_stop_the_job_at_the_site_they_enter(
    broken: str, named: str, bad: float, needs: type[Statistic], propagation: Any, together: bool
) -> None:
    model = tiny.model("llama")
    weight = model.get_submodule(broken).weight
    weight[TOKENS[0, 0] if weight.ndim > 1 else 0] = bad
    with pytest.raises(JobError, match=f"{named} hold NaN or infinity"):
        for stage in stages(model):
            for _ in stage.visit(needs, propagation, together=together):
                pass


@every_way
def test_a_site_that_no_token_reaches_stops_the_job(propagation: Any, together: bool) -> None:
    model = tiny.model("llama")
    model.model.layers[1].spare = nn.Linear(32, 32)
    met = []
    with pytest.raises(JobError, match=r"no calibration token reached model\.layers\.1\.spare"):
        for stage in stages(model):
            met += [site.name for site, _ in stage.visit(InputNorm, propagation, together=together)]
    assert "model.layers.1.mlp.down_proj" not in met or propagation == "layer"


class Routed(nn.Module):
    """Three experts; a batch of a single sequence does not use the second."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = [0, 1, 2] if len(x) > 1 else [0, 2]
        return sum((self.experts[i](x * (i + 1)) for i in chosen), torch.zeros(()))


@every_way
@pytest.mark.parametrize("batches", [BATCHES, BATCHES[::-1]], ids=["last_differs", "first_differs"])
def test_batches_that_take_different_ways_are_measured_where_they_went_or_refused(
    batches: list[Tensor], propagation: Any, together: bool
) -> None:
    model = tiny.model("llama")
    for block in model.model.layers:
        block.mlp = Routed()
    experts = model.model.layers[0].mlp.experts
    entering = passing(model, list(experts), batches)
    assert [len(x) for x in entering] == [3, 2, 3]
    stage = next(walked(model, batches).stages("walking"))
    visit = stage.visit(InputNorm, propagation, together=together)
    if propagation == "layer":  # which would wait for a batch that never comes
        with pytest.raises(JobError, match=r"take different ways|no calibration token reached"):
            list(visit)
        return
    seen = {site.kind: one for site, one in visit}
    for number, entered in enumerate(entering):
        assert torch.equal(seen[f"mlp.experts.{number}"].statistic.value, norms_of(entered, 32))


@pytest.mark.parametrize("fails", [False, True])
def test_replaced_forwards_come_back(fails: bool) -> None:
    plain, hooked = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.forward = own = hooked.forward
    x = torch.ones(1, 2)
    expected = plain(x), hooked(x)
    try:
        with replaced([plain, hooked], [lambda x: x, lambda x: x]):
            assert plain(x) is x
            assert hooked(x) is x
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert "forward" not in vars(plain)
    assert vars(hooked)["forward"] is own
    assert same([plain(x), hooked(x)], list(expected))


def test_paused_sites_call_before_they_compute_and_then_no_more() -> None:
    model = tiny.model("llama")
    expected = logits(model)
    sites = Anatomy(model, LinearLayers()).block_sites(0)
    met: list[str] = []
    with paused(sites, lambda site, x: met.append(site.name)):
        assert torch.equal(logits(model), expected)
    assert met == [site.name for site in sites]
    assert torch.equal(logits(model), expected)
    assert len(met) == len(sites)
    assert not any("forward" in vars(module) for module in model.modules())


@every_way
def test_a_walk_that_is_abandoned_leaves_the_forwards_as_they_were(propagation: Any, together: bool) -> None:
    model = tiny.model("llama")
    expected = logits(model)
    walk = stages(model)
    visit = next(walk).visit(InputNorm, propagation, together=together)
    next(visit)
    visit.close()
    walk.close()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(logits(model), expected)
