"""The pretended GPU refuses what torch refuses, allows what it allows, and counts what waits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.device.pretended import GPU, PretendedGpu


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with PretendedGpu() as gpu:
        yield gpu


def on_gpu(*shape: int) -> Tensor:
    return torch.ones(*shape, device="cuda")


MIXES: dict[str, Callable[[], object]] = {
    "sum": lambda: on_gpu(3) + torch.ones(3),
    "host with a number of the device": lambda: torch.ones(3) * on_gpu(1)[0],
    "product": lambda: on_gpu(2, 3) @ torch.ones(3, 2),
    "in place": lambda: torch.ones(3).add_(on_gpu(3)),
    "number of the host in place": lambda: torch.zeros(()).add_(on_gpu(1)[0]),
    "concatenation": lambda: torch.cat([on_gpu(3), torch.ones(3)]),
    "host by a mask of the device": lambda: torch.tensor([1, 2])[on_gpu(2) > 0],  # KTO's sizes, once
    "host by places of the device": lambda: torch.ones(3).__setitem__(on_gpu(1).long(), 0.0),
    "values of the host": lambda: on_gpu(3).__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "embedding": lambda: torch.nn.functional.embedding(torch.tensor([0]), on_gpu(3, 2)),
    "where": lambda: torch.where(on_gpu(3) > 0, on_gpu(3), torch.ones(3)),
    "linear": lambda: torch.nn.Linear(2, 2)(on_gpu(2)),
    "backward": lambda: on_gpu(2).requires_grad_().sin().backward(torch.ones(2)),
}


@pytest.mark.parametrize("name", MIXES)
def test_devices_do_not_mix(gpu, name):
    with pytest.raises(RuntimeError, match="on the same device|indices should be on cpu"):
        MIXES[name]()


def test_numpy_needs_the_host(gpu):
    with pytest.raises(TypeError, match="numpy"):
        on_gpu(3).numpy()
    assert on_gpu(3).cpu().numpy().tolist() == [1, 1, 1]


def test_results_are_where_their_operands_are(gpu):
    weight = on_gpu(3).requires_grad_()
    result = (weight * torch.tensor(2.0)).view(1, 3)[:, 1:]  # a number of the host may take part
    result.sum().backward()
    assert result.device == weight.grad.device == weight.detach().device == torch.zeros_like(weight).device == GPU
    assert result.is_cuda
    assert not result.is_cpu
    assert torch.ones(3).device.type == result.to("cpu").device.type == "cpu"
    assert torch.zeros_like(weight, device="cpu").device.type == "cpu"


def test_what_torch_makes_on_the_way_is_there_too(gpu):
    """Padding, and the mask of a causal attention that is computed step by step."""
    padded = torch.nn.utils.rnn.pad_sequence([on_gpu(2), on_gpu(3)])
    query = on_gpu(1, 1, 4, 8).requires_grad_()
    attention = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True, dropout_p=0.5)
    attention.sum().backward()
    assert padded.device == attention.device == query.grad.device == GPU
    assert torch.zeros(3).device.type == "cpu"
    assert not gpu.syncs, gpu.report()


def test_modules_move_and_train(gpu):
    """AdamW over its groups of tensors, clipping, and activations that are computed again in the backward pass."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).to(device=GPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = gpu.syncs.copy()
    for _ in range(2):
        checkpoint(model, on_gpu(2, 4), use_reentrant=False).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert gpu.syncs == before
    assert all(state["exp_avg"].device == GPU for state in optimizer.state.values())


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "list": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "copied to the host": lambda x: torch.ones(3).copy_(x),
    "from the host": lambda x: torch.ones(3).to(x.device),
    "made of numbers": lambda x: torch.tensor([1, 2], device=x.device),
    "places of a mask": lambda x: (x > 0).nonzero(),
    "by a mask": lambda x: x[x > 0],
    "by places of the host": lambda x: x[[0, 1]],
    "values put by a mask": lambda x: x.__setitem__(x > 0, x.clone()),
    "counts": lambda x: torch.bincount(x.long(), minlength=5),
    "repeated": lambda x: torch.repeat_interleave(x, x.long()),
    "equal": lambda x: torch.equal(x, x),
}
NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "from the host, without waiting": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "one number by a mask": lambda x: x.__setitem__(x > 0, 1.0),
    "by places": lambda x: x[x.long()],
    "repeated, of a known size": lambda x: torch.repeat_interleave(x, x.long(), output_size=3),
    "another dtype": lambda x: x.to(torch.float64),
    "zeros": lambda x: torch.zeros(3, device=x.device),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", [*WAITS, *NO_WAITS])
def test_waits_are_counted(gpu, name, inference):
    numbers = on_gpu(3)
    with torch.inference_mode(inference):
        (WAITS | NO_WAITS)[name](numbers)
    assert len(gpu.syncs) == (name in WAITS), gpu.report()


def test_a_tag_ends_with_its_storage(gpu):
    """Otherwise the next tensor at its address would be on the device."""
    view = on_gpu(3)[1:]
    gc.collect()
    assert gpu.holds(view)
    del view
    gc.collect()
    assert not gpu._tags


def test_the_gpu_is_gone_afterwards():
    with PretendedGpu():
        assert torch.cuda.is_available()
        tensor = on_gpu(3)
    assert not torch.cuda.is_available()
    assert tensor.device.type == "cpu"
    (tensor + torch.ones(3)).sum()
