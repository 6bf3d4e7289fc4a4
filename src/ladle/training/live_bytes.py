"""Counts the bytes that operators hold while a step runs on tensors without data (FakeTensorMode).

Every storage that comes to life is counted until it dies, so activations, logits and temporaries are those of the very
operators that a real step runs. Operators whose result's shape hangs on data are given one: a mask chooses all, rows
are shared out among experts evenly, a packed row is one document.

Not counted: what a kernel allocates for itself, and the allocator's losses.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages made under it; `now` are alive, `peak` is the most there were at once.

    Args:
        known: the weights, whose storages are counted elsewhere.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        weights = list(known)
        self.known = {storage_id(tensor) for tensor in weights}
        self.shapes = {tensor.shape for tensor in weights}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = None
        if any(isinstance(one, FakeTensor) for one in args):
            result = self._added_in_place(func, args)
            result = _without_data(func, args) if result is None else result
        if result is None:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result

    def _added_in_place(self, func: Any, args: Any) -> torch.Tensor | None:
        """Return the first of two gradients of a weight after adding the other to it; None for all else.

        So does autograd where a weight is used twice (a tied head) or in two microbatches; for tensors without data,
        which are of a subclass, it would make a third.
        """
        if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or args[0].shape not in self.shapes:
            return None
        both = all(isinstance(one, torch.Tensor) and one.shape == args[0].shape for one in args[:2])
        return args[0].add_(args[1]) if both and args[0].dtype == args[1].dtype else None

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def storage_id(tensor: torch.Tensor) -> int:
    """Return what tells a tensor's storage from others while it lives."""
    return tensor.untyped_storage()._cdata


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    return sum({storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _without_data(func: Any, args: Any) -> Any:
    """Return what an operator gives whose result's shape depends on data; None for every other operator."""
    name = func.overloadpacket
    if name is torch.ops.aten.index and _masks(args[1]):
        mask = _masks(args[1])[0]
        return args[0].new_empty((mask.numel(), *args[0].shape[mask.dim() :]))
    if name in (torch.ops.aten.index_put, torch.ops.aten._index_put_impl_) and _masks(args[1]):
        return args[0].clone() if name is torch.ops.aten.index_put else args[0]
    if name is torch.ops.aten.index_put_ and _masks(args[1]):
        return args[0]
    if name is torch.ops.aten.nonzero:  # asked where packed documents begin: a row is taken to be one
        return args[0].new_empty((0, args[0].dim()), dtype=torch.long)
    if name is torch.ops.aten._local_scalar_dense:
        return 1
    if name is torch.ops.aten._grouped_mm:
        return args[0].new_empty(_grouped_shape(*args))
    return None


def _grouped_shape(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any) -> list[int]:
    """Return the shape of `torch._grouped_mm`, whose own description for tensors without data knows bfloat16 alone."""
    if left.dim() == 2 and right.dim() == 2:
        assert offsets is not None  # a group is a run of the shared dimension
        return [offsets.numel(), left.shape[0], right.shape[1]]
    batch = [left.shape[0]] if left.dim() == 3 and right.dim() == 3 else []
    return [*batch, left.shape[-2], right.shape[-1]]


def _masks(indices: Any) -> list[torch.Tensor]:
    return [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
