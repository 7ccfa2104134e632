"""Reading the sources of activations while a model trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nlcompanion.laws.sources import ElementwiseCall, Source, noticed, source_of
from nlcompanion.monitoring.gradient_sums import GradientSums, Sums

Key = tuple[str, str, int]


class SourceReader:
    """Sums ``delta (z s'(z) - s(z))`` of chosen activations over the backward passes that a step's gradient is made of.

    It listens while the modules named in the sources run, two more products and a sum for each activation. Which passes
    count, and how the gradient was scaled since, is read off one parameter: see :class:`GradientSums`.

    Args:
        model: that is trained; not compiled and not in several processes.
        sources: whose activations are read.
        witness: a parameter of the laws.

    Raises:
        ValueError: for a model whose activations cannot be seen.
    """

    def __init__(self, model: nn.Module, sources: Iterable[Source], witness: nn.Parameter):
        if type(model).__name__ == "DistributedDataParallel":
            raise ValueError(
                "the source of an activation is that of one process's samples, and the gradient is averaged over all; "
                "leave laws with sources out of the ledger: [law for law in laws if not law.sources]"
            )
        self.axes: dict[Key, set[int]] = {}
        for source in sources:
            self.axes.setdefault(source.key, set()).add(source.axis)
        self.path: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.mode = _Listening(self)
        self.sums = GradientSums(witness)
        self.handles = [*self.sums.handles, *self._listen(model)]

    def take(self) -> Sums:
        """The sums that belong to the gradients as they are now."""
        sums = self.sums.take()
        self.calls.clear()
        missing = [key for key, axes in self.axes.items() if any((key, axis) not in sums for axis in axes)]
        if missing:
            module, function, _ = missing[0]
            raise ValueError(
                f"no backward pass went through {function} in {module or 'the model'} since the last step, so the "
                "source of its law is not known; a compiled model hides it: pass the ledger the laws without sources"
            )
        return sums

    def _listen(self, model: nn.Module) -> list:
        named = {}
        for name, module in model.named_modules():
            parts = [part for part in name.split(".") if part not in {"_orig_mod", "module"}]
            named[".".join(parts)] = module
        wanted = {module for module, *_ in self.axes}
        for name in wanted - set(named):
            raise ValueError(f"the laws have a source in the module {name}, which the model lacks; audit this model")
        wanted |= {name for name, module in named.items() if self._holds_witness(module)}
        handles = [model.register_forward_pre_hook(lambda *_: self.calls.clear())]
        for name, module in named.items():
            if any(name == above or not above or name.startswith(above + ".") for above in wanted):
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
                handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        return handles

    def _holds_witness(self, module: nn.Module) -> bool:
        return any(p is self.sums.witness for p in module.parameters(recurse=False))

    def _enter(self, name: str) -> None:
        self.sums.forward()
        if not self.path:
            self.mode.__enter__()
        self.path.append(name)

    def _leave(self) -> None:
        if self.path:
            self.path.pop()
            if not self.path:
                self.mode.__exit__(None, None, None)

    def note(self, call: ElementwiseCall) -> None:
        """One call of an elementwise function."""
        here = self.path[-1]
        key = here, call.name, self.calls[here, call.name]
        self.calls[here, call.name] += 1
        if key not in self.axes:
            return

        def add(field: Tensor) -> None:
            if field.dtype in (torch.float16, torch.bfloat16):
                field = field.float()
            for axis in self.axes[key]:
                rest = [k for k in range(field.ndim) if k != axis]
                # PyTorch adds up in a cascade: its rounding is that of the entries
                self.sums.add((key, axis), (field.sum(rest) if rest else field).double())

        _in_each_pass(call, add)


# one node of autograd each, whose gradients are those of the whole function
_NODES = {
    "gelu": "GeluBackward",
    "silu": "SiluBackward",
    "tanh": "TanhBackward",
    "sigmoid": "SigmoidBackward",
    "softplus": "SoftplusBackward",
    "elu": "EluBackward",
    "mish": "MishBackward",
    "hardswish": "HardswishBackward",
}


def _in_each_pass(call: ElementwiseCall, add: Callable[[Tensor], None]) -> None:
    """Have ``add`` called with the source, elementwise, in each backward pass through this call.

    With ``dz`` the gradient that the pass itself sends on to ``z``, the source is ``dz z - delta s``: two products of
    what is there. Where the function is no single node, or nothing is sent on to ``z``, its slope is taken anew.
    """
    node = call.out.grad_fn
    expected = _NODES.get(call.name)
    if node is None or expected is None or not node.name().startswith(expected):
        call.out.register_hook(lambda delta: add(source_of(call.function, call.z, delta)))
        return
    out = call.out.detach()  # a node that held its own output would never be freed
    version, function, z = out._version, call.function, call.z

    def passed(sent_on: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]) -> None:
        dz, delta = sent_on[0], received[0]
        if delta is None:
            return
        if dz is None or out._version != version:  # written over since
            add(source_of(function, z, delta))
            return
        with torch.no_grad():
            add(torch.addcmul(dz * z, delta, out, value=-1))

    node.register_hook(passed)


class _Listening(TorchFunctionMode):
    def __init__(self, reader: SourceReader):
        super().__init__()
        self.reader = reader

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out, call = noticed(func, args, kwargs or {})
        if call is not None:
            self.reader.note(call)
        return out
