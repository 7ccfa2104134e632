"""The room where a model is examined: a copy in float64, whose loss is a function of parameters, data and a seed.

The original is never run. In the copy the constants named ``eps`` are (almost) zero, casts to lower precision lead to
float64, buffers are what they were before every call, and random numbers follow the seed.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nlcompanion.laws.auditing.sampling import resample, to_double
from nlcompanion.laws.sources import ELEMENTWISE, source_of

_LOW = (torch.float32, torch.float16, torch.bfloat16)
_TINY = 1e-30
_IS_EPS = re.compile(r"(^|_)eps(ilon)?$")
_NORMS = {"layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


class AuditError(ValueError):
    """The model, its data or its loss cannot be audited; the message names the cause."""


@dataclass
class Activation:
    """One call of an elementwise function: what went in, and what came out."""

    module: str
    name: str
    function: Callable[[Tensor], Tensor]
    z: Tensor
    out: Tensor

    def source(self) -> Tensor:
        """``delta (z s'(z) - s(z))``, elementwise; zero where nothing depends on the output."""
        if self.out.grad is None:
            return torch.zeros_like(self.z)
        return source_of(self.function, self.z, self.out.grad)


class _InDouble(TorchFunctionMode):
    """Casts to lower precision lead to float64; normalisations called as functions lose their eps."""

    def __init__(self, exact: bool, record: list[Activation] | None, path: list[str]):
        super().__init__()
        self.exact, self.record, self.path = exact, record, path

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in _CASTS:
            return torch.Tensor.double(args[0])
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _LOW else a for a in args)
        if kwargs.get("dtype") in _LOW:
            kwargs["dtype"] = torch.float64
        if self.exact and name in _NORMS:
            args, kwargs = _without_eps(func, args, kwargs)
        out = func(*args, **kwargs)
        if self.record is not None and name in ELEMENTWISE and self.path:
            self._note(self.record, name, func, args, kwargs, out)
        return out

    def _note(self, record: list[Activation], name: str, func, args, kwargs, out) -> None:
        z = args[0] if args else kwargs.get("input")
        if out is z:  # written in place: what went in is gone
            return
        if not (isinstance(z, Tensor) and isinstance(out, Tensor) and out.requires_grad and z.is_floating_point()):
            return
        rest = {k: v for k, v in kwargs.items() if k != "input"}
        if any(isinstance(v, Tensor) for v in (*args[1:], *rest.values())):
            return
        out.retain_grad()
        record.append(Activation(self.path[-1], name, lambda x: func(x, *args[1:], **rest), z, out))


def _without_eps(func, args, kwargs):
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except (TypeError, ValueError):
        if kwargs.get("eps") is not None:
            kwargs["eps"] = _TINY
        elif getattr(func, "__name__", "") == "layer_norm" and len(args) >= 5:
            args = (*args[:4], _TINY, *args[5:])
        return args, kwargs
    bound.apply_defaults()
    if "eps" in bound.arguments:
        bound.arguments["eps"] = _TINY
    return bound.args, bound.kwargs


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in {"DataParallel", "DistributedDataParallel"}:
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@dataclass
class DoubleCopy:
    """A float64 copy of a model with its data; made by :func:`double_copy`."""

    model: nn.Module
    inputs: Any
    targets: Any
    criterion: Callable | None
    limits: list[str]
    parameters: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    seed: int
    samplable: bool = True
    positive: bool = False  # parameters are drawn around their start: further away the loss is not finite
    eps: list[tuple[nn.Module, str, float | None]] = field(default_factory=list)
    _buffers: dict[str, Tensor] = field(default_factory=dict)
    _path: list[str] = field(default_factory=list)

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss(self, data=None, seed: int = 0, *, exact: bool = True, record: list[Activation] | None = None) -> Tensor:
        """The loss at the copy's present parameters; the same for the same data and seed."""
        inputs, targets = (self.inputs, self.targets) if data is None else data
        self._restore_buffers()
        self._set_eps(exact)
        _seed_all(seed)
        with _InDouble(exact, record, self._path):
            value = self._value(inputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.ndim > 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise AuditError(
                f"the loss is {got}, and laws belong to one number; reduce it with .mean() or .sum(), or pass "
                "loss(model, batch) with targets=None for a model of another kind"
            )
        return value.reshape(())

    def _value(self, inputs, targets):
        if self.criterion is not None and targets is None:
            return self.criterion(self.model, inputs)
        outputs = call(self.model, inputs)
        if self.criterion is None:
            own = outputs["loss"] if isinstance(outputs, Mapping) and "loss" in outputs else outputs
            return getattr(own, "loss", own)
        return self.criterion(outputs, targets)

    def outputs(self, data, seed: int) -> Tensor | None:
        """All floating numbers that the model puts out, but a loss of its own; None where that cannot be told."""
        self._restore_buffers()
        self._set_eps(True)
        _seed_all(seed)
        try:
            with torch.no_grad(), _InDouble(True, None, self._path):
                found = call(self.model, data[0])
        except Exception:
            return None
        if isinstance(found, Mapping):
            found = [value for key, value in found.items() if "loss" not in str(key)]
        return _flat(found)

    def gradient(self, data=None, seed: int = 0, *, exact: bool = True, record=None) -> tuple[Tensor, dict]:
        """The loss and its gradient by parameter name; zeros where the loss does not depend on one."""
        value = self.loss(data, seed, exact=exact, record=record)
        if not value.requires_grad:
            raise AuditError(
                "the loss does not depend on the model's trained parameters; it was computed under no_grad, detached, "
                "or from something else than the model's outputs"
            )
        tensors = list(self.parameters.values())
        found: Sequence[Tensor | None]
        if record:  # activations want their own gradient, which only backward() leaves behind
            for p in tensors:
                p.grad = None
            value.backward()
            found = [p.grad for p in tensors]
            for p in tensors:
                p.grad = None
        else:
            found = torch.autograd.grad(value, tensors, allow_unused=True)
        named = zip(self.parameters, found, tensors, strict=True)
        return value.detach(), {
            name: torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g).detach()
            for name, g, p in named
        }

    # --- where it is examined -------------------------------------------------------------------------------------

    def draw(self, number: int):
        """Move to random parameters and return random data: number ``number`` of this copy's sequence."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        self._draw_parameters(generator)
        return self.sample(generator)

    def sample(self, generator: torch.Generator):
        if not self.samplable:
            return self.inputs, self.targets
        return resample(self.inputs, generator, False), resample(self.targets, generator, True)

    @torch.no_grad()
    def _draw_parameters(self, generator: torch.Generator) -> None:
        for name, p in self.parameters.items():
            noise = torch.empty(p.shape, dtype=torch.float32).normal_(generator=generator).to(p)  # much faster drawn so
            start, (mean, spread) = self.start[name], self._spreads[name]
            if self.positive:
                p.copy_(start * torch.exp(0.3 * noise.clamp(-2, 2)) + 1e-2 * noise)
            elif p.ndim < 2:
                p.copy_(noise.mul_(max(spread, 0.5)).add_(mean))
            else:
                fan_in = p[0].numel()
                p.copy_(noise.mul_(max(spread, fan_in**-0.5)))

    @cached_property
    def _spreads(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each of the model's own parameters."""
        return {
            name: (float(start.mean()), float(start.std(correction=0))) if start.numel() else (0.0, 0.0)
            for name, start in self.start.items()
        }

    @torch.no_grad()
    def back(self) -> None:
        """Return to the model's own parameters."""
        for name, p in self.parameters.items():
            p.copy_(self.start[name])

    def _restore_buffers(self) -> None:
        with torch.no_grad():
            for name, buffer in self.model.named_buffers(remove_duplicate=False):
                kept = self._buffers.get(name)
                if kept is not None and kept.shape == buffer.shape:
                    buffer.copy_(kept)

    def _set_eps(self, exact: bool) -> None:
        for module, name, value in self.eps:
            setattr(module, name, _TINY if exact else value)


def _flat(found) -> Tensor | None:
    if isinstance(found, Tensor):
        return found.detach().reshape(-1).double() if found.is_floating_point() and found.numel() > 1 else None
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, tuple | list):
        return None
    parts = [part for part in map(_flat, found) if part is not None]
    return torch.cat(parts) if parts else None


def call(model: nn.Module, inputs):
    """``model(inputs)``; a mapping is passed by keyword, a tuple or list by position."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def double_copy(model: nn.Module, inputs, targets, loss, *, seed: int = 0) -> DoubleCopy:
    """Copy a model into float64, with its data, and see whether its loss can be examined.

    Raises:
        TypeError: if ``model`` is no module or ``loss`` cannot be called.
        AuditError: nothing to train; a forward pass that fails; a loss that is not one finite number.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function such as torch.nn.functional.cross_entropy, got {loss!r}")
    limits: list[str] = []
    inner = unwrap(model)
    if inner is not model:
        limits.append(f"looked through {type(model).__name__}: parameters carry the names of the model inside")
    _note_hooks(inner, limits)
    twin = _deepcopy(inner)
    for p in twin.parameters():
        p.grad = None
    twin.double()
    eps: list[tuple[nn.Module, str, float | None]] = []
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.dtype in _LOW:
                setattr(module, name, value.double())
            elif _IS_EPS.search(name) and isinstance(value, float) and 0 < value <= 1e-2:
                eps.append((module, name, value))
            elif name == "eps" and value is None and isinstance(module, nn.RMSNorm):
                eps.append((module, name, torch.finfo(torch.float32).eps))
    _note_untrained(twin, limits)
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad and p.dtype == torch.float64}
    if not trained:
        raise AuditError(
            "the model has no trained parameter (none with requires_grad=True), so nothing moves and nothing is "
            "conserved by training; unfreeze some"
        )
    start = {name: p.detach().clone() for name, p in trained.items()}
    empty = [name for name, p in start.items() if not bool(torch.isfinite(p).all())]
    if empty:
        raise AuditError(
            f"{', '.join(empty)}: NaN or infinity among the parameters; audit the model before it diverges"
        )
    buffers = {name: b.detach().clone() for name, b in twin.named_buffers(remove_duplicate=False)}
    room = DoubleCopy(
        twin, to_double(inputs), to_double(targets), loss, limits, trained, start, seed, eps=eps, _buffers=buffers
    )
    _keep_path(twin, room._path)
    return room


def probe(room: DoubleCopy) -> None:
    """Find out what the loss can stand: its own data, other data, other parameters; whether it is a function at all."""
    try:
        value, gradient = room.gradient(seed=1)
    except AuditError:
        raise
    except Exception as error:
        raise AuditError(
            f"the model or its loss fails on the given data, in float64: {type(error).__name__}: {error}; check that "
            "loss(model(inputs), targets) runs, pass a dict or tuple for several inputs, or loss(model, batch) with "
            "targets=None"
        ) from error
    if not bool(torch.isfinite(value)):
        raise AuditError(f"the loss is {float(value)} on the given data; an audit needs a finite one")
    if not all(bool(torch.isfinite(g).all()) for g in gradient.values()):
        raise AuditError("the gradient on the given data holds NaN or infinity; an audit needs a finite one")
    if not _same(room.loss(seed=1), value):
        raise AuditError(
            "two calls with the same parameters, data and random seed give different losses, so the loss is not a "
            "function that could have a symmetry; something random ignores torch's, NumPy's and Python's seeds, or "
            "the model keeps a state of its own between calls"
        )
    if not _finite_at(room):
        room.positive = True
        if not _finite_at(room):
            room.samplable = False
            room.limits.append(
                "other data than the given ones fail in this model: laws were sought on these data alone"
            )
            if not _finite_at(room):
                raise AuditError("the loss is not finite or fails near the model's own parameters")
        else:
            room.limits.append("random parameters were drawn near the model's own: further away the loss is not finite")
    _check_derivative(room)
    room.back()


def _finite_at(room: DoubleCopy) -> bool:
    for number in range(900_001, 900_004):
        try:
            value, gradient = room.gradient(room.draw(number), seed=number)
        except AuditError:
            raise
        except Exception:
            return False
        if not (torch.isfinite(value) and all(bool(torch.isfinite(g).all()) for g in gradient.values())):
            return False
    return True


def _check_derivative(room: DoubleCopy) -> None:
    """Whether backward() gives the derivative of the loss: straight-through estimators and detach() do not."""
    worst = 0.0
    for number in range(910_001, 910_004):
        data = room.draw(number)
        _, gradient = room.gradient(data, seed=number)
        generator = torch.Generator().manual_seed(number)
        along = {
            name: torch.empty(g.shape, dtype=g.dtype).normal_(generator=generator).to(g.device) * g.abs()
            for name, g in gradient.items()
        }
        slope = sum(float((g * along[name]).sum()) for name, g in gradient.items())
        size = sum(float((g * along[name]).abs().sum()) for name, g in gradient.items())
        length = max(float(x.abs().max()) for x in along.values())
        if not size or not length:
            continue
        at = {name: p.detach().clone() for name, p in room.parameters.items()}
        errors = []
        for h in (1e-4 / length, 1e-5 / length, 1e-6 / length, 1e-7 / length):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    for name, p in room.parameters.items():
                        p.copy_(at[name] + sign * h * along[name])
                values.append(room.loss(data, seed=number).detach())
            errors.append(abs(float(values[0] - values[1]) / (2 * h) - slope) / size)
        worst = max(worst, min(errors))
    if worst > 1e-2:
        room.limits.append(
            f"backward() does not give the derivative of the loss (off by {worst:.0%} of its terms): a detached part, "
            "a straight-through estimator or a custom autograd function; only what holds of both is called a law"
        )


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, the default precision and the gradient's mode are afterwards what they were."""
    python, numpy_state, default = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(deterministic)
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(abs(a - b) <= 1e-12 * abs(b) + 1e-300)


def _deepcopy(model: nn.Module) -> nn.Module:
    """A copy, also of models that hold tensors which are results (an old weight_norm after its first call)."""
    memo = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise AuditError(
            f"the model cannot be copied ({type(error).__name__}: {error}), and the original is never touched; make "
            "what it holds copyable, or audit a fresh one from the same class"
        ) from error


def _note_hooks(model: nn.Module, limits: list[str]) -> None:
    hooked = [
        name
        for name, p in model.named_parameters()
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    ]
    if hooked:
        limits.append(f"hooks on the gradient of {', '.join(hooked)} are not part of the loss and were left out")


def _note_untrained(model: nn.Module, limits: list[str]) -> None:
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        limits.append(f"frozen, held at their values: {_some(frozen)}")
    other = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float64]
    if other:
        limits.append(f"not examined, not real numbers: {_some(other)}")
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    for shared in names.values():
        if len(shared) > 1:
            limits.append(f"one tensor under several names: {' = '.join(shared)}")


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _keep_path(model: nn.Module, path: list[str]) -> None:
    """Know at any time in which module the forward pass is."""

    def leave(*_) -> None:
        if path:
            path.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: path.append(name))
        module.register_forward_hook(leave, always_call=True)
