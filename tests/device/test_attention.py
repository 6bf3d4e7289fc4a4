"""Packed rows are as their documents by themselves, by every attention that a recipe can choose; or it is refused.

Kernels that need a GPU run as references in plain PyTorch (`tests.device.kernels`), flex attention without a compiler.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ladle.errors import UserError
from ladle.kto.data import Bin
from ladle.kto.loss import prepare_policy, use_kto_forward
from ladle.models import probe as probe_module
from ladle.models.attention import BORDERS, document_borders, to_device, varlen_attention
from ladle.models.probe import Traits, probe
from ladle.training.cross_entropy import loss_of_rows
from ladle.training.packed_rows import collate_packed
from tests.device.kernels import flash_attention, varlen_attn
from tests.device.pretended import PretendedGpu
from tests.tiny_models import LLAMA, make_model

SHAPES: dict[str, dict[str, Any]] = {"llama": {}, "deepseek_v3": {"v_head_dim": 12}}
"""Grouped keys and values; values narrower than queries."""
ROWS = [[29, 1, 40, 10], [80], [3, 77], [20, 20, 20, 20], [1, 1, 78], [50, 30], [79, 1], [40, 40]]


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Iterator[torch.device]:
    """Let a model attend by one of the choices, on the device where that runs."""
    is_on_gpu = attention == "varlen"
    kernel = flash_attention((torch.float32,)) if attention.startswith("flash") else nullcontext()
    with PretendedGpu(torch.float32) if is_on_gpu else nullcontext(), kernel:
        device = torch.device("cuda" if is_on_gpu else "cpu")
        model.to(device=device)  # type: ignore[reportCallIssue]
        model.config._attn_implementation = attention
        yield device


def make_batch(num_rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    rows = []
    for lengths in ROWS[:num_rows]:
        positions = torch.cat([torch.arange(length) for length in lengths])
        ids = torch.randint(2, 320, positions.shape, generator=generator)
        labels = ids.masked_fill(positions == 0, -100)
        rows.append({"input_ids": ids, "position_ids": positions, "labels": labels})
    return collate_packed([{name: tensor.numpy() for name, tensor in row.items()} for row in rows])


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def alone(model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
    """The summed loss of each document by itself, from transformers' plain forward."""
    losses = []
    for row, lengths in zip(batch["input_ids"], ROWS, strict=False):
        for ids in row.split(lengths):
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            losses.append(F.cross_entropy(logits, ids[1:], reduction="sum"))
    return torch.stack(losses).sum()


def mean_of_rows(model: PreTrainedModel, traits: Traits, batch: dict[str, Any]) -> torch.Tensor:
    total, count = loss_of_rows(model, traits, batch)
    return total / count


@pytest.mark.parametrize("num_rows", [1, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["eager", "packed_sdpa", "document_sdpa", "varlen", "flash_attention_2"])
def test_loss_and_gradients_are_those_of_the_documents_alone(attention, shape, num_rows):
    model, batch = make_model(shape, **SHAPES[shape]), make_batch(num_rows)
    model.set_attn_implementation("eager")
    expected = alone(model, batch) / (batch["labels"][:, 1:] != -100).sum()
    expected.backward()
    expected_gradients = gradients(model)
    with attending(model, attention) as device:
        loss = mean_of_rows(model, probe(model, num_rows), to_device(batch, device))
        assert model.config._attn_implementation == attention
        loss.backward()
        assert abs(loss.item() - expected.item()) < 1e-5
        found = gradients(model)
        assert found.keys() == expected_gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient.cpu(), expected_gradients[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_flex_attention_keeps_documents_apart_and_does_not_train_on_a_cpu(shape, num_rows):
    model, batch = make_model(shape, **SHAPES[shape]), make_batch(num_rows)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        loss = mean_of_rows(model, Traits(), batch)
    model.set_attn_implementation("eager")
    assert abs(loss - alone(model, batch) / (batch["labels"][:, 1:] != -100).sum()) < 1e-5
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"), pytest.raises(UserError, match="flex_attention does not fit .* CPU"):
        probe(model)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["varlen", "flash_attention_2", "document_sdpa", "packed_sdpa"])
def test_the_loss_of_kto_is_that_of_each_completion_alone(attention, shape):
    """Each completion by itself, without a mask: log-probabilities, the loss and its gradients."""
    model, batch = make_model(shape, **SHAPES[shape]), make_batch(1)
    model.set_attn_implementation("sdpa")
    ids = batch["input_ids"]
    sizes = [length - 1 for length in ROWS[0] if length > 1]
    predicts = [place for place in range(ids.shape[1] - 1) if batch["position_ids"][0, place + 1]]
    targets = ids[0, 1:][predicts]
    positions = batch["position_ids"]

    def step(one_bin: Bin) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        loss, logps, _ = model(bin=one_bin, objective=lambda logp_b, which: torch.sigmoid(-0.01 * logp_b))
        loss.backward()
        return loss.detach().cpu(), logps.cpu(), gradients(model)

    traits = Traits("each is a row of its own")
    assert not use_kto_forward(model, traits)
    losses, logps, summed = [], [], {}
    for part in [part for part in ids[0].split(ROWS[0]) if len(part) > 1]:
        one = step(Bin(part[None], None, torch.arange(len(part) - 1), part[1:], [len(part) - 1]))
        losses.append(one[0])
        logps.append(one[1])
        summed = {name: summed.get(name, 0) + gradient for name, gradient in one[2].items()}
    model.config._attn_implementation = "sdpa"
    with attending(model, attention) as device:
        is_packed = use_kto_forward(model, probe(model, 1, each_document=True))
        assert is_packed == (attention != "packed_sdpa")
        one_bin = Bin(ids, positions, torch.tensor(predicts), targets, sizes, document_borders(positions))
        loss, together, found = step(one_bin.to(device))
    assert abs(loss - torch.stack(losses).sum()) < 1e-5
    torch.testing.assert_close(together, torch.cat(logps), rtol=0, atol=1e-4)  # sums over tokens, of some hundred nats
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.cpu(), summed[name], rtol=0, atol=1e-5)


def lose_borders(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in BORDERS}


def test_a_choice_that_joins_documents_is_refused_by_name(monkeypatch):
    """As transformers' flash attention does with several rows and without borders."""
    model = make_model("llama")
    monkeypatch.setattr(probe_module, "attention_inputs", lose_borders)
    with attending(model, "flash_attention_2"), pytest.raises(UserError, match="flash_attention_2.*see each other"):
        probe(model, 8)


def test_flash_attention_in_float32_is_refused_by_name():
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with flash_attention(), pytest.raises(UserError, match=r"flash_attention_2.*fp16 and bf16.*\n?.*sdpa"):
        probe(model)


FALLBACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp16 and bf16": ("llama", {"dtype": torch.float32}),
    "head dimension at most 256": ("llama", {"head_dim": 272}),
    "it has attention_dropout": ("llama", {"attention_dropout": 0.1}),
    "its routers' loss takes a mask": ("mixtral", {"output_router_logits": True}),
}


def make(model_type: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = (
        LLAMA | {"vocab_size": 320, "num_local_experts": 4, "pad_token_id": 1} | changes | {"model_type": model_type}
    )
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=dtype).eval()


@pytest.mark.parametrize("why", FALLBACKS)
def test_what_the_kernel_does_not_take_is_masked_with_a_warning_and_in_the_record(why):
    model_type, changes = FALLBACKS[why]
    model = make(model_type, **changes)
    with PretendedGpu():
        traits = probe(model.to("cuda"))
    assert model.config._attn_implementation == "packed_sdpa"
    assert why in cast(str, traits.why_not_by_document)
    assert why in traits.choices()["attention"]
    assert any(why in sentence for sentence in traits.sentences())


@pytest.mark.parametrize(
    ("model_type", "changes", "autocast"),
    [
        ("llama", {}, None),
        ("llama", {"head_dim": 20}, None),
        ("llama", {"dtype": torch.float32}, "bfloat16"),
        ("llama", {"dtype": torch.float32}, "float16"),
        ("mistral", {"sliding_window": 16}, None),
    ],
    ids=["bfloat16", "odd head size", "masters", "fp16", "sliding window"],
)
def test_the_kernel_is_taken_on_a_gpu(model_type, changes, autocast):
    model = make(model_type, **changes)
    with PretendedGpu() as gpu:
        assert probe(model.to("cuda"), 2, autocast) == Traits()
        assert model.config._attn_implementation == "varlen"
        windows = {call["window_size"] for call in gpu.varlen_calls}
        assert windows == ({(15, 0), (2, 0)} if model_type == "mistral" else {(-1, 0)})
        call = gpu.varlen_calls[-1]
        assert (call["query"].shape[:2], call["key"].shape[1], call["max_q"]) == ((2 * 12, 4), 2, 7)
        assert call["query"].dtype == getattr(torch, autocast or "bfloat16")


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}, {}])
def test_what_the_kernel_would_leave_out_is_refused(asked):
    """A cap, sinks, dropout; and a layer that is not given the borders."""
    states, borders = torch.zeros(1, 4, 12, 8), document_borders(torch.arange(12)[None]) if asked else {}
    no_mask = torch.empty(0, 0, 0, 0)
    with pytest.raises(UserError, match=f"Identity .* {next(iter(asked), 'cu_seq_lens_q')}.*eager"):
        varlen_attention(torch.nn.Identity(), states, states, states, no_mask, **borders, **asked)


def test_a_mask_of_padding_is_kept_without_borders():
    model, ids = make_model("llama"), torch.randint(2, 320, (2, 30))
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    with attending(model, "varlen") as device:
        inputs = to_device({"input_ids": ids, "attention_mask": mask}, device)
        found = model(**inputs, use_cache=False).logits.cpu()
    torch.testing.assert_close(found[1, 11:], expected[1, 11:], rtol=0, atol=2e-6)


def test_a_policy_packs_on_a_gpu():
    with PretendedGpu():
        model = make("llama").to("cuda")
        assert use_kto_forward(model, prepare_policy(model))
        masked = make("llama", torch.float32).to("cuda")
        assert not use_kto_forward(masked, prepare_policy(masked))


def test_the_reference_has_the_kernels_signature():
    theirs, ours = (inspect.signature(function).parameters for function in (varlen.varlen_attn, varlen_attn))
    kinds = {name: (parameter.kind, parameter.default) for name, parameter in ours.items() if name != "dtypes"}
    assert kinds == {name: (parameter.kind, parameter.default) for name, parameter in theirs.items()}
