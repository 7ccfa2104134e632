"""The room where a model is examined: a copy in float64, whose loss is a function of parameters, data and a seed.

The original is never run. In the copy the constants named ``eps`` are (almost) zero, casts to lower precision lead to
float64, buffers are what they were before every call, and random numbers follow the seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nlcompanion.laws.auditing.double_precision import LOW, TINY, Activation, InDouble, seed_all
from nlcompanion.laws.auditing.sampling import resample, to_double
from nlcompanion.networks.copies import copied, loose_tensors, unwrapped
from nlcompanion.networks.nested_data import Precision, call, cast_criterion
from nlcompanion.networks.recomputation import plain_checkpoints

STRETCH = 4.0  # by how much parameters are larger where thresholds are looked for
_IS_EPS = re.compile(r"(^|_)eps(ilon)?$")


class AuditError(ValueError):
    """The model, its data or its loss cannot be audited; the message names the cause."""


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
    stretched: bool = False  # every second draw is of larger parameters: an activation has a threshold there
    eps: list[tuple[nn.Module, str, float | None]] = field(default_factory=list)
    _buffers: dict[str, Tensor] = field(default_factory=dict)
    originals: dict[int, str] = field(default_factory=dict)  # names of the model's own parameters, by their ids
    _path: list[str] = field(default_factory=list)

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss(self, data=None, seed: int = 0, *, exact: bool = True, record: list[Activation] | None = None) -> Tensor:
        """The loss at the copy's present parameters; the same for the same data and seed."""
        inputs, targets = (self.inputs, self.targets) if data is None else data
        self._restore_buffers()
        self._set_eps(exact)
        seed_all(seed)
        with InDouble(exact, record, self._path), plain_checkpoints:
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
        seed_all(seed)
        try:
            with torch.no_grad(), InDouble(True, None, self._path), plain_checkpoints:
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
        found = torch.autograd.grad(value, tensors, allow_unused=True)
        named = zip(self.parameters, found, tensors, strict=True)
        return value.detach(), {
            name: torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g).detach()
            for name, g, p in named
        }

    # --- where it is examined -------------------------------------------------------------------------------------

    def draw(self, number: int, stretch: float | None = None):
        """Move to random parameters and return random data: number ``number`` of this copy's sequence.

        Args:
            number: which draw.
            stretch: a factor of all parameters; left out, 1, or in every second draw ``STRETCH`` where activations are
                linear for ordinary weights alone.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        self._draw_parameters(generator)
        factor = (STRETCH if self.stretched and number % 2 else 1.0) if stretch is None else stretch
        if factor != 1:
            with torch.no_grad():
                for p in self.parameters.values():
                    p.mul_(factor)
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
            setattr(module, name, TINY if exact else value)


def _flat(found) -> Tensor | None:
    if isinstance(found, Tensor):
        return found.detach().reshape(-1).double() if found.is_floating_point() and found.numel() > 1 else None
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, tuple | list):
        return None
    parts = [part for part in map(_flat, found) if part is not None]
    return torch.cat(parts) if parts else None


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
    inner = unwrapped(model)
    if inner is not model:
        limits.append(f"looked through {type(model).__name__}: parameters carry the names of the model inside")
    _note_hooks(inner, limits)
    twin = _copy_of(inner).double()
    eps = _eps_of(twin)
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
    criterion = cast_criterion(loss, Precision(torch.float64))
    room = DoubleCopy(
        twin, to_double(inputs), to_double(targets), criterion, limits, trained, start, seed, eps=eps, _buffers=buffers
    )
    room.originals = {id(p): name for name, p in inner.named_parameters()}
    _keep_path(twin, room._path)
    return room


def _copy_of(model: nn.Module) -> nn.Module:
    """A copy without gradients and graphs; tensors that are plain attributes are made float64 too."""
    try:
        twin = copied(model)
    except (TypeError, ValueError) as error:
        raise AuditError(f"the original is never touched, and there is no copy to examine: {error}") from error
    for p in twin.parameters():
        p.grad = None
    for module, name, value in list(loose_tensors(twin)):
        if value.dtype in LOW:
            setattr(module, name, value.double())
    return twin


def _eps_of(model: nn.Module) -> list[tuple[nn.Module, str, float | None]]:
    """Where the modules keep an eps: the module, the attribute's name and its value."""
    found: list[tuple[nn.Module, str, float | None]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            if _IS_EPS.search(name) and isinstance(value, float) and 0 < value <= 1e-2:
                found.append((module, name, value))
            elif name == "eps" and value is None and isinstance(module, nn.RMSNorm):
                found.append((module, name, torch.finfo(torch.float32).eps))
    return found


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
