"""A GPU that is not there: torch's FakeTensorMode on device `cuda`, which knows shapes and types and
no numbers. Whatever asks for a number, or for a shape that depends on numbers, raises: a real GPU
would be waited for.

Torch as it is built for CPUs alone has no guard for that device, which indexing and autograd ask
for, and its autograd engine wants the device's streams. So it gets the guard of the device `meta`,
which does nothing, and the backward pass walks the graph itself."""

import contextlib
import ctypes
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

SYNCS = (DataDependentOutputException, DynamicOutputShapeException)
"""What is raised where a GPU would be waited for."""
GPU = torch.device("cuda", 0)
CUDA_TYPE, META_TYPE, TYPES = 1, 14, 20  # of c10/core/DeviceType.h


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Tensors that are made within are fake; those from outside become so by `from_tensor`."""
    with _guard(), FakeTensorMode() as mode:
        yield mode


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    if torch.backends.cuda.is_built():
        yield
        return

    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * TYPES).in_dll(library, name)
    assert guards[META_TYPE] and not guards[CUDA_TYPE]
    guards[CUDA_TYPE] = guards[META_TYPE]
    try:
        yield
    finally:
        guards[CUDA_TYPE] = None


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for, in what runs on a CPU. Lists of numbers are counted too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.found[func.overloadpacket.__name__] += 1

        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Self:
        self._tolist: Any = Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            self.found["tolist"] += 1
            return self._tolist(tensor)

        Tensor.tolist = tolist  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *given: Any) -> None:
        Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*given)


def onto_gpu(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Give a module fake weights of this type on the device; shared ones stay shared."""
    moved: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Tensor:
        found = mode.from_tensor(tensor).detach().to(GPU)
        return found.to(dtype) if tensor.is_floating_point() else found

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if id(weight) not in moved:
                    moved[id(weight)] = weight, nn.Parameter(fake(weight))

                part._parameters[name] = moved[id(weight)][1]

        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer)


def backward(loss: Tensor) -> None:
    """The backward pass, node by node, as the autograd engine goes through them."""
    root: Any = loss.grad_fn
    waits_for: Counter[Any] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits_for[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)

    incoming: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    incoming[root][0] = torch.ones_like(loss)
    ready = [root]
    while ready:
        node = ready.pop()
        gradients = incoming.pop(node, {})
        if hasattr(node, "variable"):  # a weight
            (gradient,) = gradients.values()
            node.variable.grad = gradient
            continue

        call = node.apply if isinstance(node, BackwardCFunction) else node
        found = call(*(gradients.get(number) for number in range(len(node._input_metadata))))
        outgoing = found if isinstance(found, tuple) else (found,)
        # a Function of ours has more: None for each argument that is no tensor, which come last
        for (following, number), gradient in zip(node.next_functions, outgoing, strict=False):
            if following is None:
                continue

            if gradient is not None:
                given = following._input_metadata[number]
                gradient = gradient.sum_to_size(given.shape).to(given.dtype)
                there = incoming[following]
                there[number] = there[number] + gradient if number in there else gradient

            waits_for[following] -= 1
            if not waits_for[following]:
                ready.append(following)
