"""A GPU that is not there: tensors on it have shapes and no numbers, and what would be done on it is counted.

PyTorch's fake tensors stand for those on the GPU; what is on the CPU is computed as ever. So the very step of a
training run goes through, and every operation on the way that would launch a kernel, wait for the GPU or copy memory to
it is seen. Two small libraries (`build`) let PyTorch believe in a device, so that its autograd has a thread for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "standins" / "fake_gpu"

VIEWS = {
    "alias", "as_strided", "detach", "diagonal", "expand", "expand_as", "flatten", "is_contiguous", "lift_fresh",
    "movedim", "narrow", "numel", "permute", "reshape", "select", "size", "slice", "split", "split_with_sizes",
    "squeeze", "storage_offset", "stride", "sym_numel", "sym_size", "sym_storage_offset", "sym_stride", "t",
    "transpose", "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as", "_unsafe_view",
}  # fmt: skip
EMPTY = {"device", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""These launch nothing."""

ASKS_FOR_NUMBERS = {
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique", "_unique2",
}  # fmt: skip
"""The host cannot go on before the GPU has come so far."""

COPIES = {"_to_copy", "copy_"}


class NoGpuToFake(Exception):
    """Why this machine cannot pretend to have one."""


def build(folder: Path) -> dict[str, str]:
    """Build the libraries; the environment of a process that believes in the device.

    Raises:
        NoGpuToFake: There is no C compiler, or this PyTorch knows no CUDA.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoGpuToFake("needs a C compiler")
    headers = Path(torch.__file__).parents[1] / "triton" / "backends" / "nvidia" / "include"
    if torch.version.cuda is None or not headers.is_dir() or sys.platform != "linux":
        raise NoGpuToFake("needs a build of PyTorch for CUDA, on Linux")
    runtime, driver = folder / "libpretended_runtime.so", folder / "libcuda.so.1"
    for library, source, options in (
        (runtime, "cuda_runtime.c", ["-I", str(headers)]),
        (driver, "cuda_driver.c", [f"-Wl,-soname,{driver.name}"]),
    ):
        subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, SOURCES / source], check=True)
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": os.pathsep.join(paths)}


@dataclass(slots=True)
class Counts:
    """What was done on the GPU, by phase.

    Attributes:
        launches: Operations that launch a kernel or more.
        moved: Bytes that they read and write, each operand once.
        kinds: Launches of each operation, of all phases.
        places: Launches and bytes of each operation by where it was called, as ``phase: operation at file:line``.
        waits: Where the host waited, as ``phase: operation at file:line``.
        pageable: Where memory that is not page-locked was copied to the GPU.
        mixed: Where an operation had operands on both sides.
        other_layout: Where a convolution got a map whose channels are not last in memory, and copies it.
    """

    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    pageable: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    other_layout: list[str] = field(default_factory=list)


class FakeGpu(TorchDispatchMode):
    """While it is entered, tensors on ``cuda`` are fake, and counted.

    What the host asks of them is 1, or False: so that no draw is repeated for ever.

    Attributes:
        counts: So far.
        phase: Of the step, under which is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.counts, self.phase = Counts(), "input"
        self._page_locked: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == "cuda"
        if not to_gpu and not any(isinstance(one, FakeTensor) for one in given):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name in ASKS_FOR_NUMBERS:
            self._note(self.counts.waits, name)
        if name == "_local_scalar_dense":
            return given[0].dtype != torch.bool and torch.ones((), dtype=given[0].dtype).item()
        if "norm" in name:
            _refuse_mixed_types(name, given)
        fake_args, fake_kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
        if "generator" in fake_kwargs:
            fake_kwargs["generator"] = None  # a fake tensor is drawn from none
        with self.fake:
            out = func(*fake_args, **fake_kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._count(name, args, kwargs, given, made)
        if name == "_to_copy" and made[0].device.type == "cpu":
            return torch.ones(made[0].shape, dtype=made[0].dtype)  # numbers, for a host that goes on with them
        return out

    @contextmanager
    def page_locking(self) -> Iterator[None]:
        """Let ``pin_memory`` do what it would do, and remember it."""
        before = Tensor.pin_memory, Tensor.is_pinned

        def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
            pinned = tensor.clone()
            self._page_locked[pinned.untyped_storage().data_ptr()] = pinned.untyped_storage()
            return pinned

        Tensor.pin_memory, Tensor.is_pinned = pin_memory, lambda tensor, device=None: self._is_page_locked(tensor)
        try:
            yield
        finally:
            Tensor.pin_memory, Tensor.is_pinned = before

    def _is_page_locked(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._page_locked

    def _as_fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor, static_shapes=True)

    def _count(
        self, name: str, args: tuple, kwargs: Mapping[str, Any], given: list[Tensor], made: list[Tensor]
    ) -> None:
        if name in VIEWS or name in EMPTY or "cuda" not in {one.device.type for one in given + made}:
            return
        on_host = [one for one in given + made if one.device.type == "cpu" and one.dim() > 0]
        if name in COPIES:
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            hosts = [one for one in given + made if one.device.type == "cpu"]
            if hosts and blocking:
                self._note(self.counts.waits, name)
            if given and given[-1].device.type == "cpu" and not self._is_page_locked(given[-1]):
                self._note(self.counts.pageable, name)
        elif on_host:
            self._note(self.counts.mixed, name)
        if name == "convolution" and not args[0].is_contiguous(memory_format=torch.channels_last_3d):
            self._note(self.counts.other_layout, name)
        self.counts.launches[self.phase] += 1
        self.counts.kinds[name] += 1
        moved = _moved(name, args, given, made)
        self.counts.moved[self.phase] += moved
        place = f"{self.phase}: {name} at {_site()}"
        launches, before = self.counts.places.get(place, (0, 0))
        self.counts.places[place] = launches + 1, before + moved

    def _note(self, where: list[str], name: str) -> None:
        note = f"{self.phase}: {name} at {_site()}"
        if where[-1:] != [note]:  # the numbers of a `tolist` are copied at once
            where.append(note)


def pretend() -> None:
    """Let PyTorch take fake tensors for those that its fast paths know; once a process."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes it on the CPU and copies it
    torch.cuda.empty_cache = lambda: None
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    optimizer._foreach_supported_types.append(FakeTensor)
    known = _foreach_utils._get_foreach_kernels_supported_devices

    def has_foreach(tensors: Any, device: torch.device) -> bool:
        return device.type in known()

    _foreach_utils._has_foreach_support = has_foreach
    torch.nn.utils.clip_grad._has_foreach_support = has_foreach
    torch.nn.Module._apply = _converted


def _converted(module: torch.nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """``nn.Module._apply`` for fake tensors, whose memory cannot be exchanged: what changes is a new parameter."""
    for child in module.children():
        _converted(child, convert)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            changed = None if parameter is None else convert(parameter)
            if changed is not parameter:
                module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _refuse_mixed_types(name: str, given: list[Tensor]) -> None:
    """Do as the kernels of group norm on a GPU, which the fake ones do not."""
    types = {one.dtype for one in given[:1]} | {one.dtype for one in given if one.dim() == 1}
    if name.startswith("native_group_norm") and len(types) > 1:
        raise RuntimeError(f"{name}: expected scalar type {' but found '.join(map(str, types))}")


def _site() -> str:
    """The innermost line of the packages on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"


def _moved(name: str, args: tuple, given: list[Tensor], made: list[Tensor]) -> int:
    """Bytes of the GPU's memory that an operation reads and writes: every operand once, and what some need besides.

    Kernels of ours are operations too (``torch.ops.headspark``), one launch each, and read each operand once: where
    windows overlap, `gather` reads a voxel again while the GPU's cache still holds it.
    """
    special = _MOVED.get(name)
    if special is not None:
        return special(args, made)
    reads = sum(_bytes(one) for one in given if one.device.type == "cuda")
    writes = sum(_bytes(one) for one in made if one.device.type == "cuda")
    # What is changed in place is among the operands and returned, or not returned at all.
    if name.startswith("_foreach") and name.endswith("_"):
        writes = sum(_bytes(one) for one in args[0])
    return reads + writes


def _bytes(tensor: Tensor) -> int:
    """Of a tensor; what is expanded lies once in memory."""
    size = tensor.element_size()
    for edge, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= edge if stride else 1
    return size


def _row(tensor: Tensor, axis: int) -> int:
    return tensor.element_size() * tensor.numel() // max(tensor.shape[axis], 1)


_MOVED: dict[str, Callable[[tuple, list[Tensor]], int]] = {
    "fill_": lambda args, made: _bytes(args[0]),
    "zero_": lambda args, made: _bytes(args[0]),
    "new_zeros": lambda args, made: _bytes(made[0]),
    "zeros_like": lambda args, made: _bytes(made[0]),
    "ones_like": lambda args, made: _bytes(made[0]),
    "copy_": lambda args, made: _bytes(args[0]) + _bytes(args[1]),
    "index_select": lambda args, made: 2 * _bytes(made[0]) + _bytes(args[2]),
    "index_fill_": lambda args, made: args[2].numel() * (args[2].element_size() + _row(args[0], args[1])),
    "index_copy_": lambda args, made: 2 * _bytes(args[3]) + _bytes(args[2]),
    # Statistics are read once, and the map again where it is used.
    "native_batch_norm": lambda args, made: 3 * _bytes(args[0]),
    "native_batch_norm_backward": lambda args, made: 2 * (_bytes(args[0]) + _bytes(args[1])) + _bytes(args[1]),
    # What is written over the rows is no output.
    "norm_act_gradient": lambda args, made: (
        sum(_bytes(one) for one in (*args, *made) if isinstance(one, Tensor)) + args[13] * _bytes(args[1])
    ),
    "native_group_norm": lambda args, made: 3 * _bytes(args[0]),
    "native_group_norm_backward": lambda args, made: 2 * (_bytes(args[0]) + _bytes(args[1])) + _bytes(args[1]),
}
