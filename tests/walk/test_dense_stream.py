"""The dense states beside a pruned walk are those of the dense model; layers are fitted to its outputs."""

import copy

import pytest
import torch

from llmprune import prune
from llmprune.checkpoint.store import Store
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.tensors.cross_gram import CrossGram
from llmprune.walk.dense_stream import DenseStream
from llmprune.walk.walk import Walk
from tests import tiny


@torch.no_grad()
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_sites_see_the_inputs_that_they_have_in_the_dense_model(family: str, together: bool) -> None:
    model = tiny.model(family).eval()
    batches, probe = list(torch.randint(0, 100, (3, 1, 12))), torch.zeros(1, 4, dtype=torch.int64)
    untouched = Anatomy(copy.deepcopy(model), LinearLayers())
    expected = {}
    for stage in Walk(Store(untouched), batches, probe).stages(""):
        for site, inputs in stage.site_inputs(together=False):
            expected[site.name] = list(inputs)
    anatomy = Anatomy(model, LinearLayers())
    store, dense = Store(anatomy), DenseStream(anatomy)
    for stage in Walk(store, batches, probe).stages(""):
        dense.enter(stage)
        for site, inputs in stage.site_inputs(together=together):
            list(inputs)
            torch.testing.assert_close(list(dense.inputs_of(site)), expected[site.name])
            store.set_weight(site, torch.zeros_like(store.weight(site)))
        dense.leave()
    assert all((site.weight == 0).all() for site in anatomy.sites)


def test_the_target_is_the_best_weight_for_the_dense_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmprune.tensors.cross_gram.TARGET_RIDGE", 1e-9)
    torch.manual_seed(0)
    dense, weight = torch.randn(300, 8), torch.randn(5, 8)
    x = dense + 0.3 * torch.randn(300, 8) @ torch.randn(8, 8)
    statistic = CrossGram(8)
    for part, before in zip(x.split(70), dense.split(70), strict=True):
        statistic.update(part)
        statistic.compare(before, part)
    expected = torch.linalg.lstsq(x.double(), dense.double() @ weight.double().T).solution.T
    torch.testing.assert_close(statistic.target(weight), expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["admm", "sparsegpt", "wanda", "magnitude"])
def test_fitting_to_the_dense_outputs_changes_all_but_the_first_layers(method: str) -> None:
    tokens = torch.randint(0, 100, (6, 16))
    plain, fitted = tiny.model("llama"), tiny.model("llama")
    prune(plain, method=method, tokens=tokens, repair="none", target="pruned")
    report = prune(fitted, method=method, tokens=tokens, repair="none", target="dense")
    assert report.recipe["target"] == "dense"
    assert report.totals["sparsity"] == pytest.approx(0.5, abs=0.01)
    first, last = (Anatomy(m, LinearLayers()).sites[i] for m, i in ((fitted, 0), (fitted, -1)))
    again = [Anatomy(plain, LinearLayers()).sites[i] for i in (0, -1)]
    torch.testing.assert_close(first.weight, again[0].weight)  # both streams enter with the same inputs
    assert not torch.equal(last.weight, again[1].weight)
