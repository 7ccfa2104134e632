"""Whether a loss can be audited: what it stands, whether it is a function, whether its gradient is its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from nlcompanion._arguments import counted
from nlcompanion.laws.auditing.double_copy import AuditError, DoubleCopy
from nlcompanion.networks.nested_data import tensors_in

_GOOD = 1e-4  # a difference this near to the slope leaves no doubt


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
    _check_weights(room)
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


def _check_weights(room: DoubleCopy) -> None:
    """Whether forward reads the copy's weights: a closure, or a list in it, keeps the original's."""
    ours = {id(p) for p in room.parameters.values()}
    leaves = _leaves(room.loss(seed=1))
    original = sorted({room.originals[id(x)] for x in leaves if id(x) in room.originals})
    if original:
        raise AuditError(
            f"forward reads {', '.join(original)} of the model itself and not of its copy, through a function or an "
            "object that copying leaves as it is (a closure, a lambda); read weights as attributes of modules"
        )
    others = [x for x in leaves if id(x) not in ours and x.is_floating_point()]
    foreign = [x for x in others if not any(x is y for y in tensors_in((room.inputs, room.targets)))]
    if foreign:
        shapes = ", ".join(str(tuple(x.shape)) for x in foreign[:3])
        room.limits.append(
            f"the loss depends on {counted(len(foreign), 'trainable tensor')} beside the parameters of the model "
            f"(of shapes {shapes}): held at their values"
        )


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors that a result may be differentiated by."""
    seen, front, leaves = set(), [value.grad_fn], []
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        front += [following for following, _ in node.next_functions]
    return leaves


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
            if errors[-1] < _GOOD:
                break
        worst = max(worst, min(errors))
    if worst > 1e-2:
        room.limits.append(
            f"backward() does not give the derivative of the loss (off by {worst:.0%} of its terms): a detached part, "
            "a straight-through estimator or a custom autograd function; only what holds of both is called a law"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(abs(a - b) <= 1e-12 * abs(b) + 1e-300)
