"""Layers of kernels in real models, on the CPU: the same outputs, the same checkpoint, and no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmprune_kernels import acceleration, modules
from llmprune_kernels.acceleration import Choice, accelerate
from llmprune_kernels.errors import KernelError
from llmprune_kernels.modules import ShrunkMLP, Sp24Linear, Sp24MLP
from llmprune_kernels.sp24 import prefill
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import llmprune
from tests import tiny
from tests.kernels.matrices import error, normal, sparse

BF16 = torch.bfloat16


def make_24(model: nn.Module, names: tuple[str, ...] = ("proj",)) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(names):
            module.weight.data *= sparse(*module.weight.shape) != 0


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a GPU were there and every kernel won: the conversion is real, only the clock is not."""
    monkeypatch.setattr(acceleration, "why_not", lambda device: None)
    monkeypatch.setattr(
        acceleration,
        "_timed",
        lambda old, new, gain: Choice(old.kind.__name__, str(old.shape), 0, 2.0, 1.0, 0.0, True),
    )


def llama(sparse_layers: bool) -> PreTrainedModel:
    model = tiny.model("llama", BF16)
    if sparse_layers:
        make_24(model)
    return model


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()} & {nn.Linear, Sp24Linear, Sp24MLP, ShrunkMLP}


def test_a_linear_layer_computes_the_same_in_nine_sixteenths() -> None:
    linear = nn.Linear(128, 48, dtype=BF16)
    linear.weight.data *= sparse(48, 128) != 0
    layer = Sp24Linear.from_linear(linear).eval()
    x = normal(2, 3, 128, dtype=BF16)
    assert error(layer(x), linear(x).detach()) < 4e-3
    size = layer.values.nbytes + layer.meta.nbytes
    assert size / linear.weight.nbytes == 9 / 16 < 0.57


@pytest.mark.parametrize("channels", [48, 100])
def test_mlps_compute_the_same(channels: int) -> None:
    mlp = tiny.model("llama", BF16).model.layers[0].mlp
    for name, shape in (
        ("gate_proj", (channels, 32)),
        ("up_proj", (channels, 32)),
        ("down_proj", (32, channels)),
    ):
        layer = getattr(mlp, name)
        layer.weight = nn.Parameter(normal(*shape, dtype=BF16))
        if name == "down_proj":
            layer.bias = nn.Parameter(normal(32, dtype=BF16))
    x = normal(3, 32, dtype=BF16)
    shrunk = ShrunkMLP.from_mlp(mlp).eval()
    assert len(shrunk.gate) % 64 == 0 and error(shrunk(x), mlp(x)) < 1e-2
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight.data *= sparse(channels, 32) != 0
    assert error(Sp24MLP.from_mlp(mlp).eval()(x), mlp(x)) < 1e-2


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("sparse_layers", [True, False])
def test_a_model_keeps_its_logits_its_text_and_its_checkpoint(sparse_layers: bool, tmp_path: Path) -> None:
    model, dense = llama(sparse_layers), llama(sparse_layers)
    ids = torch.randint(3, 100, (2, 12))
    choices = accelerate(model)
    assert kinds(model) == ({Sp24Linear, Sp24MLP, nn.Linear} if sparse_layers else {ShrunkMLP, nn.Linear})
    assert "lm_head" in [name for name, m in model.named_modules() if type(m) is nn.Linear]
    assert sum(row.count for row in choices.rows) == (15 if sparse_layers else 3)
    assert error(model(ids).logits, dense(ids).logits) < 2e-2
    for cache in ("dynamic", "static"):
        written = model.generate(ids, max_new_tokens=4, do_sample=False, cache_implementation=cache)
        assert written.shape == (2, 16)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), dense.parameters(), strict=True))


@pytest.mark.usefixtures("on_gpu")
def test_a_model_compiles_as_one_graph() -> None:
    model = llama(True)
    accelerate(model)
    layer = model.model.layers[0].mlp
    x = normal(1, 32, dtype=BF16)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.usefixtures("on_gpu")
def test_what_loses_stays_and_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        acceleration,
        "_timed",
        lambda old, new, gain: Choice(old.kind.__name__, "x", 0, 1.0, 2.0, 0.5 * (old.name == "mlp"), False),
    )
    model = llama(True)
    table = str(accelerate(model))
    assert kinds(model) == {nn.Linear}
    assert "0.50x  dense" in table and "dense (it computes something else)" in table


def test_no_gated_mlp_is_mistaken_for_one() -> None:
    assert acceleration.is_gated_mlp(tiny.model("llama").model.layers[0].mlp)
    for family in ("gemma", "opt", "phi3"):  # gelu, no gate, gate and up in one
        assert not any(map(acceleration.is_gated_mlp, tiny.model(family).modules()))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (nn.Module.train, "the model is in training mode"),
        (lambda model: model, "the kernels need a GPU, and the model is on cpu"),
    ],
)
def test_without_a_gpu_all_stays_dense_and_why_is_said(prepare, reason: str) -> None:  # type: ignore[no-untyped-def]
    model = llama(True)
    prepare(model)
    choices = accelerate(model)
    assert str(choices).startswith(f"kernels: every layer stays dense: {reason}") and kinds(model) == {
        nn.Linear
    }


@pytest.mark.usefixtures("on_gpu")
def test_a_model_in_float32_stays_dense() -> None:
    assert "the model is in torch.float32" in str(accelerate(tiny.model("llama")))


def test_triton_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmprune_kernels.device.triton_is_there", lambda: False)
    assert "Triton is not installed" in str(accelerate(llama(True)))


def test_training_and_other_types_are_refused() -> None:
    linear = nn.Linear(64, 16, dtype=BF16)
    linear.weight.data *= sparse(16, 64) != 0
    layer = Sp24Linear.from_linear(linear)
    with pytest.raises(KernelError, match=r"Sp24Linear is for inference.*call model\.eval\(\)"):
        layer(normal(1, 64, dtype=BF16))
    with pytest.raises(KernelError, match=r"packed in torch\.bfloat16, and its input is torch\.float16"):
        layer.eval()(normal(1, 64, dtype=torch.float16))
    with pytest.raises(KernelError, match="row 0 has"):
        Sp24Linear.from_linear(nn.Linear(64, 16, dtype=BF16))


def test_loading_says_what_the_kernels_do(
    checkpoints: tiny.Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(checkpoints("llama"))
    model, _ = llmprune.load(folder, device="cpu")
    assert "kernels: every layer stays dense: the kernels need a GPU" in capsys.readouterr().err
    assert kinds(model) == {nn.Linear}
    llmprune.load(folder, device="cpu", kernels="none")
    assert "kernels" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="kernels: 'fast' is not known; allowed: auto, none"):
        llmprune.load(folder, kernels="fast")  # type: ignore[arg-type]


def test_what_is_24_is_told_from_the_weight() -> None:
    assert modules.is_24(sparse(8, 64)) and modules.is_24(sparse(8, 64, kept=1))
    assert not modules.is_24(normal(8, 64)) and not modules.is_24(sparse(8, 60))


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("wins", [True, False])
def test_a_second_copy_serves_many_tokens_where_it_wins(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuSPARSELt runs on GPUs alone: here its functions multiply the dense weight, and are counted."""
    called = []

    def multiply(blob: Tensor, x: Tensor, bias: Tensor | None = None, **how: object) -> Tensor:
        assert x.shape[1] % 8 == 0
        called.append(how)
        return (blob.float() @ x.float()).T.to(x.dtype) + (0 if bias is None else bias)

    def seconds(run: Callable[[], object]) -> float:
        called.clear()
        run()
        return 1.0 if wins == bool(called) else 2.0

    monkeypatch.setattr(torch, "_cslt_compress", torch.clone)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 7)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(prefill, "_seconds", seconds)
    monkeypatch.setattr(prefill, "BUCKETS", (256,))
    model, dense = llama(True), llama(True)
    accelerate(model, prefill="dual")
    called.clear()
    ids = torch.randint(3, 100, (3, 47))  # 141 tokens, more than the decode kernels take
    assert error(model(ids).logits, dense(ids).logits) < 2e-2
    assert [how["alg_id"] for how in called] == ([7] * 18 if wins else [])
    called.clear()
    model(ids[:1])
    assert not called
    with pytest.raises(KernelError, match="prefill is 'single' or 'dual', not 'both'"):
        accelerate(model, prefill="both")  # type: ignore[arg-type]
