"""A pretended GPU: `cuda:0` on a CPU with real numbers. Mixing devices fails as in torch, and syncs are counted.

    with PretendedGpu() as gpu:
        model.to("cuda")
        ...
    assert len(gpu.syncs) <= 3

A tensor is on the GPU if its storage is tagged. Two of torch's modes keep the tags:

- above autograd, `_Moves` (a TorchFunctionMode) makes on the CPU what `.to("cuda")` and `device="cuda"` ask for, and
  tags it;
- below autograd, `_Rules` (a TorchDispatchMode) sees every operator, those of backward passes too. It refuses tensors
  of both devices, tags what is computed from tagged ones, and counts what makes the host wait for the device.

Meanwhile `.device` of a tagged tensor is `cuda:0`, and `torch.cuda` has one GPU. What this cannot show: numbers, memory
and speed of CUDA's kernels, autocast (CUDA's does not apply to CPU tensors), streams, nccl and so FSDP2.

The rules are those of torch 2.13: c10/core and ATen/native of TensorIterator and of indexing.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import ladle
from tests.device.kernels import LOW, varlen_attn

LADLE = Path(ladle.__file__).resolve().parent

aten = torch.ops.aten
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ANSWERS = {"device": GPU, "is_cuda": True, "is_cpu": False}
"""What a tensor on the GPU says of itself."""
MOVES = (Tensor.to, Tensor.cuda, Tensor.cpu)
UPLOADS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
"""They copy from the host's memory, and wait for it."""
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive,
    aten.bincount,  # whatever its minlength, CUDA's looks at the smallest and the largest value
}  # fmt: skip
"""Operators whose result's size or value the host needs: they wait for all that the device has to do before."""
COPIES = {aten.copy_, aten._foreach_copy_, aten.set_}
"""They take tensors of both devices."""
LOOKUPS = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Indexing takes indices from the host."""
NO_SCALARS = {aten.cat, aten.embedding, aten.gather, aten.index_select}
"""Elsewhere a tensor of no dimension may come from the host."""
STAND_INS = {
    aten.histc.default: lambda values, *args: aten.histc(values.double(), *args).to(values.dtype),
    aten.mm.dtype_out: lambda left, right, dtype, out: aten.mm.out(left.to(dtype), right.to(dtype), out=out),
    aten.addmm.dtype_out: lambda total, left, right, dtype, out: aten.addmm.out(
        total, left.to(dtype), right.to(dtype), out=out
    ),
}
"""What CUDA has and the CPU lacks: histograms of integers, and products in float32 of narrower matrices."""


class Sync(NamedTuple):
    """The host waited for the device: by which operation, and where."""

    operation: str
    place: str


class PretendedGpu:
    """While entered, `cuda:0` is there.

    Args:
        varlen_dtypes: what its attention by borders takes. With float32, numbers can be compared with a CPU's.

    Attributes:
        syncs: when the host waited for the device, in order.
        varlen_calls: the queries, keys and settings of the calls to its attention by borders.
        makes_tensors: a function on tensors of the GPU runs; what C++ makes for it (a mask, padding) is there too.
    """

    def __init__(self, *varlen_dtypes: torch.dtype) -> None:
        self.varlen_dtypes = varlen_dtypes or LOW
        self.varlen_calls: list[dict[str, Any]] = []
        self.syncs: list[Sync] = []
        self.makes_tensors = False
        self._tags: set[int] = set()
        self._exit = ExitStack()

    def __enter__(self) -> PretendedGpu:
        moves, run_backward = _Moves(self), torch.autograd._engine_run_backward
        group = torch._C._group_tensors_by_device_and_dtype

        def backward(*args: Any, **kwargs: Any) -> Any:
            with moves, mock.patch.object(self, "makes_tensors", False):  # of `Tensor.backward`, without the mode
                return run_backward(*args, **kwargs)

        def group_by_device(*args: Any) -> Any:  # for clipping and optimizers; it reads the true device
            return {(lists[0][0].device, dtype): (lists, at) for (_, dtype), (lists, at) in group(*args).items()}

        load = torch.load

        def load_onto(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
            loaded = load(*args, map_location="cpu", **kwargs)
            on_gpu = map_location is not None and torch.device(map_location).type == "cuda"
            return tree_map_only(Tensor, self.place, loaded) if on_gpu else loaded

        def patch(owner: Any, name: str, value: Any) -> None:
            self._exit.enter_context(mock.patch.object(owner, name, value))

        def attend(*args: Any, **kwargs: Any) -> Tensor:
            self.varlen_calls.append({"query": args[0], "key": args[1], "max_q": args[5], **kwargs})
            return varlen_attn(*args, **kwargs, dtypes=self.varlen_dtypes)

        patch(varlen, "varlen_attn", attend)
        patch(torch, "load", load_onto)
        patch(torch.autograd, "_engine_run_backward", backward)
        patch(torch._C, "_group_tensors_by_device_and_dtype", group_by_device)
        for name, value in ANSWERS.items():  # not by the mode, which is off in hooks of autograd (checkpointing's)
            real = getattr(torch._C.TensorBase, name).__get__
            patch(Tensor, name, property(lambda x, value=value, real=real: value if self.holds(x) else real(x)))
        for name, value in {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_name": "Pretended GPU",
            "get_device_capability": (9, 0),
            "is_bf16_supported": True,
            "max_memory_allocated": 0,
            "get_rng_state": torch.zeros(0, dtype=torch.uint8),
            "set_rng_state": None,
            "set_device": None,
        }.items():
            patch(torch.cuda, name, lambda *_, value=value, **__: value)
        self._exit.enter_context(_Rules(self))
        self._exit.enter_context(moves)
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the GPU."""
        return tensor.untyped_storage()._cdata in self._tags

    def place(self, tensor: Tensor, on_gpu: bool = True) -> Tensor:
        """Say that a tensor, all of its storage, is on the GPU, or that it is not."""
        storage = tensor.untyped_storage()
        if on_gpu and storage._cdata not in self._tags:
            self._tags.add(storage._cdata)
            weakref.finalize(storage, self._tags.discard, storage._cdata)
        elif not on_gpu:
            self._tags.discard(storage._cdata)
        return tensor

    def note(self, operation: Any) -> None:
        """Count a wait of the host for the device."""
        self.syncs.append(Sync(getattr(operation, "__name__", str(operation)), _place()))

    def report(self) -> str:
        """Return the syncs so far, the most frequent first, for the message of a test that fails."""
        return "\n".join(
            f"{count} × {sync.operation} at {sync.place}" for sync, count in Counter(self.syncs).most_common()
        )


def _place() -> str:
    """Return the innermost line of Ladle or transformers that is running, and Ladle's that called it."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        is_ours = LADLE in path.parents
        if is_ours or ("transformers" in path.parts and not found):
            found.append(f"{path.name}:{frame.f_lineno}")
            if is_ours:
                break
        frame = frame.f_back
    return " from ".join(found) or "elsewhere"


class _Moves(TorchFunctionMode):
    """The ways onto the device and off it."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}  # needs a real GPU
        if func in MOVES or (func in UPLOADS[1:3] and isinstance(args[0], Tensor)):
            return self._move(func, *args, **kwargs)
        if args and isinstance(args[0], Tensor) and self.gpu.holds(args[0]):
            if func in (Tensor.numpy, Tensor.__array__) and not kwargs.get("force"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")
            if func in (Tensor.tolist, Tensor.numpy):
                self.gpu.note(func)
            elif func in (Tensor.new_tensor, Tensor.__deepcopy__):
                return self.gpu.place(func(*args, **kwargs))
        if kwargs.get("device") is None or func is torch._C._nn._parse_to:  # the latter only reads arguments
            operands = args if args and isinstance(args[0], Tensor) else tree_leaves(args[:1])
            on_gpu = any(isinstance(value, Tensor) and self.gpu.holds(value) for value in operands)
            with mock.patch.object(self.gpu, "makes_tensors", on_gpu):
                return func(*args, **kwargs)
        on_gpu = torch.device(kwargs["device"]).type == "cuda"
        result = func(*args, **kwargs | {"device": CPU if on_gpu else kwargs["device"]})
        if on_gpu and func in UPLOADS:
            self.gpu.note(func)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.gpu.place(tensor, on_gpu)
        return result

    def _move(self, func: Any, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a tensor on the device and of the dtype that are asked for, a copy where the device is another one."""
        if func is not Tensor.to:
            kwargs = {"device": GPU if func is Tensor.cuda else CPU if func is Tensor.cpu else None} | kwargs
        wanted = self.gpu.holds(source)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                wanted = self.gpu.holds(value)
            elif isinstance(value, (str, torch.device)):
                wanted = torch.device(value).type == "cuda"
        on_cpu = [CPU if isinstance(value, (str, torch.device)) else value for value in args]
        result = source.to(*on_cpu, **kwargs | ({"device": CPU} if kwargs.get("device") is not None else {}))
        if wanted == self.gpu.holds(source):
            return result
        if not (wanted and kwargs.get("non_blocking")):
            self.gpu.note(func)
        if result.untyped_storage()._cdata == source.untyped_storage()._cdata:
            result = result.clone()
        return self.gpu.place(result, wanted)


class _Rules(TorchDispatchMode):
    """What each operator takes, where its result is, and whether the host waits for it."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where operators made of others come whole: `item`, `where`, `matmul`
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with torch._C.DisableTorchFunction():
            tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            on_gpu = any(self.gpu.holds(tensor) for tensor in tensors) if tensors else self.gpu.makes_tensors
            if on_gpu:
                self._check(func, args, kwargs, tensors)
            result = (STAND_INS.get(func, func) if on_gpu else func)(*args, **kwargs)
            if on_gpu and func.overloadpacket not in COPIES:
                for tensor in tree_leaves(result):
                    if isinstance(tensor, Tensor):
                        self.gpu.place(tensor)
        return result

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Count what waits for the device.

        Raises:
            RuntimeError: tensors of both devices, where torch takes none.
        """
        holds, packet = self.gpu.holds, func.overloadpacket
        if packet in WAITS or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
            self.gpu.note(func)
        if packet in COPIES:
            if len({holds(tensor) for tensor in tensors}) == 2 and packet is not aten.set_ and not _non_blocking(args):
                self.gpu.note(func)
            return
        if packet in LOOKUPS:
            indices = [index for index in args[1] if index is not None]
            if not holds(args[0]):
                if any(holds(index) for index in indices):
                    raise RuntimeError(f"{func}: indices should be on cpu, as the indexed tensor, and are on {GPU}")
            elif any(not holds(index) for index in indices) or _needs_size(args, indices):
                self.gpu.note(func)
            tensors = [args[0], *args[2:3]]
        strict = packet in NO_SCALARS
        written = [value for value, given in zip(args, func._schema.arguments, strict=False) if _is_written(given)]
        written += [
            kwargs[given.name] for given in func._schema.arguments if given.name in kwargs and _is_written(given)
        ]
        scalars_refused = {id(tensor) for tensor in tree_leaves(written)}
        for tensor in tensors:
            if not holds(tensor) and (tensor.dim() or strict or id(tensor) in scalars_refused):
                shape = tuple(tensor.shape)
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {GPU} and cpu! "
                    f"({func}, the tensor on the cpu is of shape {shape})"
                )


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _non_blocking(args: Any) -> bool:
    return len(args) > 2 and bool(args[2])


def _needs_size(args: Any, indices: list[Tensor]) -> bool:
    """Return whether a mask's true elements have to be counted: not where one number is put in their place."""
    is_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    return is_mask and not (len(args) > 2 and args[2].numel() == 1)
