"""Whether a network's loss is a function of its flat vector, and its gradient the gradient: tried once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nlcompanion.networks.copies import copied
from nlcompanion.networks.recomputation import plain_checkpoints

if TYPE_CHECKING:
    from nlcompanion.networks.flat_loss import FlatLoss

_SAME = 1e-5  # relative: what a model that computes in float32 inside leaves of equality
_SLOPE = 2e-4  # of the lengths multiplied; a wrong gradient is off by more in some direction
_STEPS = (1e-5, 1e-4, 1e-3, 1e-6, 1e-2)  # of the weights' size; the best counts, since kinks and float32 spoil some


def check_function_of_parameters(f: FlatLoss, whole: nn.Module, data: Callable[[], Any]) -> None:
    """Compare ``f`` away from its start with the model that has these weights, with itself, and with its gradient.

    Args:
        f: the loss as made, not yet trusted.
        whole: model and criterion as one module, on whose ordinary call the comparison rests.
        data: what that module takes, in float64.

    Raises:
        ValueError, TypeError: ``f`` is no function of ``q``, or not the model's; the message names the cause.
    """
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = f(f.q0).detach()
        _check_depends_on_parameters(f)
        if not math.isfinite(float(start)):
            return  # nothing can be compared; whoever uses f at this point is told there
        q = _away_from(f)
        value = f(q).detach()
        _check_repeats(f, q, value)
        gradient = gradient_at(f, q)
        size = max(abs(float(start)), abs(float(value)), 1e-300)
        _check_against_the_model(f, whole, data(), q, value, gradient, size)
        _check_slope(f, q, gradient, size)


# --- the checks ---------------------------------------------------------------------------------------------------


def _check_depends_on_parameters(f: FlatLoss) -> None:
    q = f.q0.clone().requires_grad_()
    if not f(q).requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters through torch operations, so it has no gradient; look for "
            ".item(), .detach(), .numpy() or torch.no_grad() in the model's forward and in the loss"
        )


def _check_repeats(f: FlatLoss, q: Tensor, value: Tensor) -> None:
    again = f(q).detach()
    if float((again - value).abs()) > 1e-9 * float(value.abs()):
        raise ValueError(
            f"two calls at the same parameters gave {float(value):.6g} and {float(again):.6g}, so the loss is no "
            "function of them: something draws at random in each call (dropout, noise, sampling) or remembers the last "
            "one (a hidden state kept as an attribute); call model.eval() first, or draw outside and hand it in with "
            "the batch"
        )


def _check_against_the_model(
    f: FlatLoss, whole: nn.Module, data: Any, q: Tensor, value: Tensor, gradient: Tensor, size: float
) -> None:
    twin = copied(whole).double().cpu()
    named = dict(twin.named_parameters())
    owners = [named[f"model.{name}"] for name in f.names]
    with torch.no_grad():
        for p, x in zip(owners, f.unflatten(q).values(), strict=True):
            p.copy_(x)
    with plain_checkpoints:
        loss = twin(data)
    own = loss.detach()
    if not float((own - value).abs()) <= _SAME * size:
        raise ValueError(
            f"with other weights the model's own loss is {float(own):.6g} and f(q) {float(value):.6g}: its forward "
            "reads weights in another way than as attributes of its modules (a Python list of tensors, a closure); "
            "hold them in nn.Parameter, nn.ParameterList or nn.ModuleList and read them from there"
        )
    slopes = torch.autograd.grad(loss, owners, allow_unused=True)
    expected = torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(owners, slopes, strict=True)]
    )
    off = float((gradient - expected).norm())
    if not off <= _SAME * float(expected.norm()) + 1e-12 * size:
        raise ValueError(
            f"the gradient away from q0 is off by {off / max(float(expected.norm()), 1e-300):.2g} of the model's "
            "own: a part of the model is computed anew in the backward pass, under other weights (activation "
            "checkpointing or a reversible layer, of another library than torch.utils.checkpoint); switch that off for "
            "the copy you give"
        )


def _check_slope(f: FlatLoss, q: Tensor, gradient: Tensor, size: float) -> None:
    """The gradient against differences of the value, along a direction in which no tensor is small."""
    along = torch.cat([_unit(x.reshape(-1).shape[0]) for x in f.unflatten(q).values()])
    if float(gradient.norm()) > 0:
        along = along + gradient / gradient.norm()
    expected = float(gradient @ along)
    allowed = _SLOPE * float(gradient.norm()) * float(along.norm())
    scale = float(q.norm()) / math.sqrt(len(q)) or 1.0
    best, seen = math.inf, math.nan
    for step in _STEPS:
        h = step * scale
        difference = float((f(q + h * along) - f(q - h * along)).detach()) / (2 * h)
        if not abs(difference - expected) >= best:
            best, seen = abs(difference - expected), difference
        if best <= allowed + 1e-13 * size / h:
            return
    raise ValueError(
        f"along a random direction the loss changes by {seen:.6g} and its gradient says {expected:.6g}, so the "
        "gradient is not that of the value: the model or the loss passes values around it (detach, no_grad, .data, "
        "rounding with a straight-through estimate, spectral norm in train mode); no law of the loss holds for such "
        "steps. Take that out, or call model.eval() where a layer does it in train mode only"
    )


# --- points and directions ----------------------------------------------------------------------------------------


def random_point(f: FlatLoss, share: float = 0.3, seed: int = 0) -> Tensor:
    """A point near the start where no tensor is special: each is moved by ``share`` of its own size."""
    random = torch.Generator().manual_seed(seed)
    moved = []
    for x in f.unflatten(f.q0).values():
        size = x.square().mean().sqrt() if x.numel() else x.sum()
        size = torch.where(size > 0, size, 0.3)
        moved.append((x + share * size * torch.randn(x.shape, generator=random, dtype=x.dtype)).reshape(-1))
    return torch.cat(moved)


def _away_from(f: FlatLoss) -> Tensor:
    """Such a point where the loss is finite, nearer to the start if need be."""
    for share in (0.3, 0.03, 0.003):
        q = random_point(f, share)
        try:
            if math.isfinite(float(f(q).detach())) and torch.isfinite(gradient_at(f, q)).all():
                return q
        except (ValueError, TypeError):
            continue
    return f.q0.clone()


def _unit(n: int) -> Tensor:
    x = torch.randn(n, dtype=torch.float64)
    return x / x.norm().clamp(min=1e-300)


def gradient_at(f: FlatLoss, q: Tensor) -> Tensor:
    """The gradient of a flat loss, 0 where it does not depend on ``q``."""
    q = q.clone().requires_grad_()
    value = f(q)
    try:
        (slope,) = torch.autograd.grad(value, q, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            f"the gradient of the loss cannot be computed ({first_line(error)}); see that forward changes no tensor in "
            "place that the backward pass needs, and that nothing in it takes a gradient of its own with .backward()"
        ) from error
    return torch.zeros_like(q) if slope is None else slope.detach()


# --- errors from inside -------------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def explained(error: Exception, model: nn.Module, again: Callable[[], Any]) -> Exception:
    """What went wrong while a loss was computed: where, by the name of the module, and what helps.

    Args:
        error: as raised.
        model: the copy that was called.
        again: the same call once more, which tells where.
    """
    where = _innermost(model, again)
    text = first_line(error)
    if _is_of_precision(text):
        return TypeError(
            f"{where} met a tensor of another precision ({text}). Parameters, buffers and data are made float64 here; "
            "a tensor created inside forward or in the loss is not: take its precision from what comes in, "
            "torch.zeros(n, dtype=x.dtype, device=x.device) or weight.to(outputs.dtype), or register it as a buffer; "
            "nor is a weight that forward takes from a list or a closure"
        )
    kind = TypeError if isinstance(error, TypeError | AttributeError) else ValueError
    return kind(
        f"{where} raised {type(error).__name__}: {text}. A dict of inputs reaches forward by name, a tuple by place, "
        "one tensor as it is, floating point in float64; what fits none of these goes through "
        "flat_loss(model, batch, loss=lambda model, batch: ...)"
    )


def _is_of_precision(text: str) -> bool:
    words = ("dtype", "scalar type", "Double", "double")
    return any(word in text for word in words) and any(word in text for word in ("Float", "float", "Half", "BFloat"))


def _innermost(model: nn.Module, again: Callable[[], Any]) -> str:
    """The module that an error comes from, by name; the loss function if none is at work."""
    entered: list[str] = []
    with _watched(model, entered), torch.no_grad():
        try:
            again()
        except Exception:
            if entered:
                return entered[-1]
            return "the loss function"
    return "the model or the loss function"


@contextmanager
def _watched(model: nn.Module, entered: list[str]) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        label = f"{type(module).__name__} ({name or 'the model'})"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: entered.append(label), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: entered.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
