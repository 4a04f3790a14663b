"""A model that the caller holds is pruned where it lives: in memory, on the CPU behind hooks, or on disk."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, attach_align_device_hook_on_blocks
from accelerate.utils import OffloadedWeightsLoader
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.test_families import load, logits

FAMILIES = ["llama", "gpt2", "phi3", "falcon"]  # plain, transposed, tied and fused, tuples between blocks
METHODS = ["magnitude", "wanda", "sparsegpt"]
TEXT = {"samples": 4, "length": 32}


pytestmark = pytest.mark.usefixtures("check_in_process")


def sites(model: PreTrainedModel) -> list[Site]:
    return Anatomy(model, LinearLayers()).sites


def hooks(module: torch.nn.Module) -> list[AlignDevicesHook]:
    """accelerate's hooks that move weights, however deep they are nested."""
    found, left = [], [getattr(module, "_hf_hook", None)]
    while left:
        hook = left.pop(0)
        left += hook.hooks if isinstance(hook, SequentialHook) else []
        found += [hook] if isinstance(hook, AlignDevicesHook) else []
    return found


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of all sites, read from where they live between forwards."""
    found = {}
    for site in sites(model):
        weight = site.layer.weight
        for hook in hooks(site.layer):
            if hook.offload:
                assert weight.is_meta
                weight = hook.weights_map["weight"]
        found[f"{site.name}.weight"] = site.matrix(weight.detach()).clone()
    return found


def half_on_disk(folder: Path, offload: Path) -> PreTrainedModel:
    """The last two of three blocks stay in the checkpoint's files, as `device_map="auto"` leaves them."""
    anatomy = Anatomy(load(folder), LinearLayers())
    placed = {}
    for name, module in anatomy.model.named_modules():
        if not any(module.children()) and not name.startswith(f"{anatomy.prefix}."):
            placed[name] = "cpu"
    placed |= {f"{anatomy.prefix}.{i}": "disk" if i else "cpu" for i in range(len(anatomy.blocks))}
    return AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=offload)


def half_on_cpu(folder: Path, offload: Path) -> PreTrainedModel:
    """What accelerate's `dispatch_model` does when a GPU computes and half of the blocks wait on the CPU."""
    model = load(folder)
    anatomy = Anatomy(model, LinearLayers())
    waiting = {f"{anatomy.prefix}.{i}": i > 0 for i in range(len(anatomy.blocks))}
    here = torch.device("cpu")
    attach_align_device_hook_on_blocks(
        model,
        execution_device={"": here} | dict.fromkeys(waiting, here),
        offload={"": False} | waiting,
        weights_map=OffloadedWeightsLoader(state_dict=dict(model.state_dict())),
    )
    return model


def blocks_on_cpu(folder: Path, offload: Path) -> PreTrainedModel:
    """Each block has a table of weights of its own, with names that begin inside the block."""
    model = load(folder)
    for block in Anatomy(model, LinearLayers()).blocks:
        accelerate.cpu_offload(block, execution_device=torch.device("cpu"))
    return model


def all_on_cpu(folder: Path, offload: Path) -> PreTrainedModel:
    return accelerate.cpu_offload(load(folder), execution_device=torch.device("cpu"))


def all_on_disk(folder: Path, offload: Path) -> PreTrainedModel:
    return accelerate.disk_offload(load(folder), str(offload), execution_device=torch.device("cpu"))


PLACES = [half_on_disk, half_on_cpu, blocks_on_cpu, all_on_cpu, all_on_disk]
every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
Place = Callable[[Path, Path], PreTrainedModel]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_is_pruned_in_place(
    family: str, method: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = load(checkpoints(family))
    before = {id(module) for module in model.modules()}
    dense = logits(model)
    report = prune(model, method=method, pattern="2:4", calibration=TEXT, tokenizer=tiny.tokenizer())
    assert report.totals["sparsity"] == 0.5
    assert {id(module) for module in model.modules()} == before
    assert not torch.equal(logits(model), dense)

    prune(checkpoints(family), method=method, pattern="2:4", calibration=TEXT, out=tmp_path / "out")
    streamed = stored(load(tmp_path / "out"))
    assert all(torch.equal(weight, streamed[name]) for name, weight in stored(model).items())


def test_tokens_stand_for_a_text(checkpoints: tiny.Checkpoints) -> None:
    tokens = torch.randint(0, tiny.VOCABULARY, (4, 32))
    masks = []
    for chosen in (tokens, tokens, tokens.flip(0) % 5):
        model = load(checkpoints("llama"))
        report = prune(model, method="wanda", tokens=chosen)
        masks.append({name: weight != 0 for name, weight in stored(model).items()})
        assert report.calibration is not None
        assert (report.calibration["samples"], report.calibration["length"]) == (4, 32)
    assert all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())
    assert not all(torch.equal(masks[0][name], mask) for name, mask in masks[2].items())


CASES = [("half_on_disk", f, m) for f in FAMILIES for m in METHODS]
CASES += [("half_on_cpu", f, m) for f in FAMILIES for m in METHODS]
CASES += [(place.__name__, "llama", m) for place in PLACES[2:] for m in METHODS]


@pytest.mark.parametrize(("where", "family", "method"), CASES)
def test_a_dispatched_model_is_pruned_where_it_lives(
    where: str, family: str, method: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    place: Place = globals()[where]
    folder = checkpoints(family)
    model = place(folder, tmp_path / "offload")
    offloaded = [site.name for site in sites(model) if site.layer.weight.is_meta]
    assert len(offloaded) >= len(sites(model)) * 2 // 3
    dense = logits(model)
    assert torch.equal(dense, logits(load(folder)))

    prune(model, method=method, pattern="2:4", calibration=TEXT, tokenizer=tiny.tokenizer())
    prune(folder, method=method, pattern="2:4", calibration=TEXT, out=tmp_path / "out")
    streamed = load(tmp_path / "out")
    now, expected = stored(model), stored(streamed)
    assert now.keys() == expected.keys()
    for name, weight in now.items():
        assert ((weight == 0).reshape(-1, 4).sum(1) == 2).all(), name
        assert torch.equal(weight, expected[name]), name
    assert [site.name for site in sites(model) if site.layer.weight.is_meta] == offloaded
    assert torch.equal(logits(model), logits(streamed))
    assert not torch.equal(logits(model), dense)


@every_place
def test_pruning_a_dispatched_model_leaves_its_checkpoint_alone(place: Place, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "dense")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    prune(place(folder, tmp_path / "offload"), method="wanda", calibration=TEXT, tokenizer=tiny.tokenizer())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@every_place
def test_a_dispatched_model_can_be_pruned_again(
    place: Place, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = place(checkpoints("llama"), tmp_path / "offload")
    for sparsity in (0.25, 0.75):
        prune(model, method="magnitude", sparsity=sparsity, tokenizer=tiny.tokenizer())
        assert all((w == 0).sum() == round(sparsity * w.numel()) for w in stored(model).values())
    plain = load(checkpoints("llama"))
    prune(plain, method="magnitude", sparsity=0.75)
    assert torch.equal(logits(model), logits(plain))


def test_letting_go_of_a_pruned_model_cleans_up_without_a_word(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = half_on_disk(checkpoints("llama"), tmp_path / "offload")
    prune(model, method="magnitude")
    layer = sites(model)[-1].layer
    [table] = {id(h.weights_map): h.weights_map for h in hooks(layer) if h.offload}.values()
    file = Path(table.dataset.index[f"{table.prefix}weight"]["safetensors_file"])
    assert file.is_file()
    del model, layer, table
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gc.collect()
    assert not file.exists()
    assert [str(warning.message) for warning in said] == []


def written(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_can_be_written_to_a_folder_too(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = load(checkpoints(family))
    asked: dict[str, Any] = {"method": "wanda", "calibration": TEXT}
    prune(model, asked, tokenizer=tiny.tokenizer(), out=tmp_path / "from_memory")
    prune(checkpoints(family), asked, out=tmp_path / "streamed")
    ours, theirs = written(tmp_path / "from_memory"), written(tmp_path / "streamed")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert torch.equal(logits(load(tmp_path / "from_memory")), logits(model))


@every_place
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_dispatched_model_can_be_written_to_a_folder_too(
    family: str, place: Place, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = place(checkpoints(family), tmp_path / "offload")
    prune(model, method="wanda", calibration=TEXT, tokenizer=tiny.tokenizer(), out=tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_half_precision_stays_half_precision() -> None:
    model = tiny.model("llama", torch.bfloat16)
    before = stored(model)
    prune(model, method="wanda", calibration=TEXT, tokenizer=tiny.tokenizer())
    for name, weight in stored(model).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, before[name].masked_fill(weight == 0, 0))
        assert ((weight == 0).sum(1) == weight.shape[1] // 2).all()


def test_dropout_of_a_model_in_training_takes_no_part_in_calibration(checkpoints: tiny.Checkpoints) -> None:
    still, training = load(checkpoints("gpt2")), load(checkpoints("gpt2")).train()
    for model in (still, training):
        prune(model, method="wanda", calibration=TEXT, tokenizer=tiny.tokenizer())
    assert training.training
    assert not still.training
    expected = stored(still)
    assert all(torch.equal(weight, expected[name]) for name, weight in stored(training).items())


def test_a_pruned_model_in_memory_can_still_be_trained(checkpoints: tiny.Checkpoints) -> None:
    model = load(checkpoints("llama"))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    prune(model, method="magnitude")
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == frozen


def test_hooks_of_other_kinds_are_seen_through(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    model = half_on_cpu(checkpoints("llama"), tmp_path)
    for site in sites(model):
        accelerate.hooks.add_hook_to_module(site.layer, accelerate.hooks.ModelHook(), append=True)
        assert isinstance(site.layer._hf_hook, SequentialHook)
    prune(model, method="magnitude")
    assert all((w == 0).sum() == w.numel() // 2 for w in stored(model).values())


def test_a_model_without_a_tokenizer_is_left_alone_when_a_folder_is_asked_for(tmp_path: Path) -> None:
    model = tiny.model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(RequestError, match="tokenizer: none could be loaded from ''; pass the model's own"):
        prune(model, method="magnitude", out=tmp_path / "out")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not (tmp_path / "out").exists()
