"""Run a function or a module once, backwards too, and keep what each layer was given and gave back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from nlcompanion._arguments import described, scalar_of
from nlcompanion.testing.record import MODULES, Record, kind_of


def floating(role: str, value: Any) -> Tensor:
    """A tensor that has a gradient and numbers in it."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{role} is {what}, which has no gradient; laws are for floating-point tensors")
    if not value.numel() or value.is_meta or value.layout != torch.strided:
        raise ValueError(f"{role} holds no plain numbers: {described(value)}; give values as in training")
    return value


def _leaf(value: Any, role: str) -> Tensor:
    return floating(role, value).detach().clone().requires_grad_()


def called(function: Callable, inputs: Sequence[Any]) -> Any:
    """What a function or a module makes of its inputs; its own complaint is part of the message."""
    try:
        return function(*inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        name = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", "function")
        what = ", ".join(described(value) for value in inputs)
        raise ValueError(f"{name} fails on inputs that are {what}: {str(error).splitlines()[0]}") from error


def cotangent(output: Tensor, given: Tensor | None, seed: int) -> Tensor:
    """The gradient at the output: the one given, or random numbers of its dtype."""
    if not isinstance(output, Tensor):
        raise TypeError(f"the output is {type(output).__name__}, not a tensor; pass loss=, which makes a number of it")
    if given is not None:
        if floating("grad_output", given).shape != output.shape:
            raise ValueError(f"grad_output has shape {tuple(given.shape)}, the output {tuple(output.shape)}")
        return given.to(output.dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)


def run_kernel(function: Callable, inputs: tuple, kind: str, options: Mapping, given, loss, seed, dtype) -> Record:
    """One call of a kernel whose inputs are, in order, the roles of its kind; a module brings its parameters along."""
    roles = kind_of(kind).roles
    if not inputs or len(inputs) > len(roles):
        raise ValueError(f"{kind} takes {', '.join(roles)}, got {len(inputs)} inputs")
    values = {role: _leaf(value, role) for role, value in zip(roles, inputs, strict=False) if value is not None}
    arguments = [values.get(role) for role in roles[: len(inputs)]]
    output = floating("the output", called(function, arguments)) if loss is None else called(function, arguments)
    if isinstance(function, nn.Module):
        for role, parameter in function.named_parameters(recurse=False):
            if role in roles:
                values.setdefault(role, parameter)
    scalar = scalar_of("loss(output)", called(loss, [output])) if loss is not None else None
    if kind == "cross_entropy" and scalar is None:
        scalar = output.sum()
    if scalar is None:
        values["y"], dy = output, cotangent(output, given, seed)
        found = _differentiate(output, [values[role] for role in values if role != "y"], dy)
        gradients = dict(zip([role for role in values if role != "y"], found, strict=True)) | {"y": dy}
    else:
        if kind != "cross_entropy":
            values["y"] = output
        gradients = dict(zip(values, _differentiate(scalar, list(values.values()), None), strict=True))
    return Record(values, gradients, dict(options), dtype)


def _differentiate(output: Tensor, tensors: list[Tensor], dy: Tensor | None) -> list[Tensor | None]:
    if not output.requires_grad:
        raise ValueError(
            "the output does not depend on its inputs through autograd: a detach(), a no_grad() or a kernel without a "
            "backward pass stands in between, so there is no gradient to check"
        )
    return list(torch.autograd.grad(output, tensors, dy, allow_unused=True))


def _has_weights(module: nn.Module) -> bool:
    """Parameters of its own, or some that are computed of others (which are listed under the module itself)."""
    if isinstance(module, ParametrizationList):
        return False
    return is_parametrized(module) or bool(list(module.parameters(recurse=False)))


_BATCHED: dict[int, tuple[type[nn.Module], ...]] = {  # axes of an input; with one less it is a single sample
    3: (nn.Conv1d, nn.ConvTranspose1d, nn.InstanceNorm1d),
    4: (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d),
    5: (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d),
}
_AXES: dict[type[nn.Module], int] = {kind: axes for axes, kinds in _BATCHED.items() for kind in kinds}


def _unfit(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Why the law of the module's kind cannot be held against these calls of it; nothing if it can."""
    own = dict(module.named_parameters(recurse=False))
    for role in ("weight", "bias"):
        if role not in own and isinstance(getattr(module, role, None), Tensor):
            return f"its {role} is no parameter, but computed of {', '.join(own) or 'others'}, as pruning does"
    if any(x.ndim < _AXES.get(type(module), 0) for x in inputs):
        return "its input has no batch axis; pass x[None]"
    return ""


class Recorder:
    """Hooks on every layer whose kind is known; ``records`` after the backward pass."""

    def __init__(self, model: nn.Module, kinds: Mapping[Any, Any], dtype: torch.dtype | None):
        self.calls: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
        self.known: dict[str, tuple[nn.Module, str, dict]] = {}
        self.limits: list[str] = []
        self.by_keyword: set[str] = set()
        self.without_gradients: set[str] = set()
        self.aliases: dict[str, dict[str, Tensor]] = {}
        self.lent: dict[str, dict[str, nn.Parameter]] = {}
        self.dtype = dtype
        names = model.named_parameters(remove_duplicate=False)
        self.uses = Counter(id(parameter) for _, parameter in names)
        self.handles = []
        for name, module in model.named_modules():
            if (found := self._kind(name, module, kinds)) is not None:
                self.known[name] = (module, *found)
                self.calls[name] = []
                self.handles.append(module.register_forward_pre_hook(self._before(name)))
                self.handles.append(module.register_forward_hook(self._after(name)))
            elif _has_weights(module):
                self.limits.append(f"{name or 'the module'} ({type(module).__name__}): no law is known of it as it is")

    def _kind(self, name: str, module: nn.Module, kinds: Mapping):
        declared = kinds.get(name, kinds.get(type(module)))
        if declared is not None:
            kind, options = declared if isinstance(declared, tuple) else (declared, {})
            kind_of(kind)
            return kind, dict(options)
        read = MODULES.get(type(module))
        found = read(module) if read is not None else None
        return None if found is None else (found[0], dict(found[1]))

    def _before(self, name: str) -> Callable:
        """Aliases of the input and of the parameters, whose gradients are this layer's share alone."""

        def stand_in(module: nn.Module, inputs: tuple):
            if not inputs:
                self.by_keyword.add(name)
                return None
            first = inputs[0]
            if not isinstance(first, Tensor) or not first.is_floating_point():
                return None
            if not torch.is_grad_enabled():
                self.without_gradients.add(name)
                return None
            self._lend(name, module)
            alias = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
            module._law_input = alias
            return (alias, *inputs[1:])

        return stand_in

    def _lend(self, name: str, module: nn.Module) -> None:
        """The layer computes with aliases of its parameters until :meth:`_give_back`."""
        trained = {role: p for role, p in module.named_parameters(recurse=False) if p.requires_grad}
        if name not in self.aliases:
            self.aliases[name] = {role: parameter.view_as(parameter) for role, parameter in trained.items()}
        self.lent[name] = trained
        module._parameters.update(cast("dict[str, nn.Parameter]", self.aliases[name]))

    def _give_back(self, name: str) -> None:
        module = self.known[name][0]
        module._parameters.update(self.lent.pop(name, {}))

    def _after(self, name: str) -> Callable:
        def keep(module: nn.Module, inputs: tuple, output):
            self._give_back(name)
            alias = module.__dict__.pop("_law_input", None)
            if alias is not None and isinstance(output, Tensor) and output.requires_grad:
                self.calls[name].append((alias, output, output._version))

        return keep

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        for name in list(self.lent):  # of a forward pass that failed
            self._give_back(name)
            self.known[name][0].__dict__.pop("_law_input", None)

    def records(self, output: Tensor, dy: Tensor | None) -> list[tuple[str, str, Record]]:
        """Name, kind and record of every layer that was called."""
        tensors = [t for calls in self.calls.values() for x, y, _ in calls for t in (x, y)]
        trained = {(name, role): alias for name, held in self.aliases.items() for role, alias in held.items()}
        found = self._gradients(output, [*tensors, *trained.values()], dy) if tensors else []
        if found is None:
            return []
        at = iter(found[: len(tensors)])
        of_parameters = dict(zip(trained, found[len(tensors) :], strict=True))
        records = []
        for name, (module, kind, options) in self.known.items():
            calls = [(x, y, next(at), next(at), version) for x, y, version in self.calls[name]]
            record = self._of_layer(name, module, kind, options, calls, of_parameters)
            if record is not None:
                records.append((name, kind, record))
        return records

    def _gradients(self, output: Tensor, tensors: list[Tensor], dy: Tensor | None) -> list[Tensor | None] | None:
        try:
            return _differentiate(output, tensors, dy)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            self.limits.append(
                "a reentrant checkpoint hides the gradients of all layers; pass use_reentrant=False to it"
            )
            return None

    def _unseen(self, name: str, calls: Sequence) -> str:
        """Why not all calls of a layer were recorded; nothing if they were."""
        if name in self.by_keyword:
            return "its input was passed by keyword; pass it by place"
        if calls:
            return ""
        if name in self.without_gradients:
            return "it ran without gradients, as a reentrant checkpoint or no_grad() has it"
        return "it was not called, or no gradient reaches its output"

    def _of_layer(self, name, module, kind, options, calls, of_parameters) -> Record | None:
        if reason := self._unseen(name, calls) or _unfit(module, [x for x, *_ in calls]):
            self.limits.append(f"{name or 'the module'}: {reason}")
            return None
        parameters = dict(module.named_parameters(recurse=False))
        for role, parameter in parameters.items():
            if self.uses[id(parameter)] > 1:
                self.limits.append(f"{name}: its {role} is used elsewhere too, and .grad is the sum of both uses")
                return None
            if not parameter.requires_grad and role == "weight" and kind in ("linear", "convolution"):
                self.limits.append(f"{name}: its {role} is frozen, and the law binds its gradient")
                return None
        if len(calls) > 1 and kind != "linear":
            self.limits.append(f"{name}: it was called {len(calls)} times; only linear layers are checked then")
            return None
        if any(y._version != version for _, y, _, _, version in calls):
            self.limits.append(f"{name}: what it returned was changed in place afterwards; set inplace=False there")
            return None
        if any(dx is None or dy is None for _, _, dx, dy, _ in calls):
            self.limits.append(f"{name}: no gradient reaches it")
            return None
        columns = [[call[k] for call in calls] for k in range(4)]
        if len(calls) > 1:
            columns = [[torch.cat([t.reshape(-1, t.shape[-1]) for t in column])] for column in columns]
        x, y, dx, dy = (column[0] for column in columns)
        values, gradients = {"x": x, "y": y}, {"x": dx, "y": dy}
        for role, parameter in parameters.items():
            values[role] = parameter
            gradients[role] = of_parameters.get((name, role))
        return Record(values, gradients, options, self.dtype)
