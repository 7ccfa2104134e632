"""The steps of a ``torch.optim`` optimiser, as the ledger follows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlcompanion.laws.terms import Term
from nlcompanion.laws.under_optimizers import STILL, StepRates, fading, sgd_rates
from nlcompanion.monitoring.stacked_forms import Step, Tensors

if TYPE_CHECKING:
    from nlcompanion.monitoring.ledger import Ledger

_AFRESH = 256  # steps after which squares are summed anew, lest the rounding of their changes add up

_OF_ROUNDING = 8  # units in the last place of the largest gradient of any law


Versions = list[int]


@dataclass(frozen=True)
class Rest:
    """The weights between two steps.

    Attributes:
        squares: the forms' pairings of the weights with themselves.
        weights, buffers: what tells that a weight or a momentum buffer was written to, or replaced.
        last: pairings of the last step with the weights, and the rates it was made with; None where it was not the
            buffer times the rate.
    """

    squares: Tensor
    weights: Versions
    buffers: list[tuple[int, int] | None]
    last: tuple[Tensor, dict[str, float]] | None


@dataclass(frozen=True)
class Ahead:
    """What is known of a step before it is taken.

    Attributes:
        groups: each parameter's settings.
        rest: the weights that it starts from.
        outside: what was written to the weights since the last step: the change of the charges, and their scale.
        rates: of SGD, for each parameter.
        memory: pairings of the buffers with the weights, each to be multiplied by a number; None without momentum.
        pull: pairings of the gradients with the weights, where rates differ within a law.
        slopes: of other optimisers, what :meth:`StackedForms.generators` says of the gradients.
    """

    groups: dict[str, dict]
    rest: Rest
    outside: tuple[Tensor, Tensor] | None
    rates: dict[str, StepRates]
    memory: tuple[Tensor, dict[str, float]] | None = None
    pull: Tensor | None = None
    slopes: tuple[Tensor, Tensor, Tensor] | None = None


class OptimizerSteps:
    """The steps of a ``torch.optim.Optimizer``, seen through its hooks.

    Before a step :meth:`_look_ahead` gathers what the step will overwrite; after it :meth:`_book` compares. Between
    the two and from step to step there is an :class:`Ahead` and a :class:`Rest`, and nothing else but a copy of the
    weights.
    """

    def __init__(self, ledger: Ledger, model: nn.Module | None, optimizer: torch.optim.Optimizer | None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be the torch.nn.Module that is trained, got {type(model).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; for descend() pass rule="
            )
        self.ledger, self.optimizer, self.forms = ledger, optimizer, ledger._forms
        self.parameters = _find(model, self.forms.terms)
        self.name = type(optimizer).__name__
        self.is_sgd = isinstance(optimizer, torch.optim.SGD)
        first = next(iter(self.parameters.values()))
        self.dtype = first.dtype
        self._groups()
        self.forms.to(first.device)
        if self.forms.has_shifts:
            with torch.no_grad():
                self.forms.floor = 1e-3 * max(float(p.abs().mean()) for p in self.parameters.values())
        self._before: Tensors = {name: torch.empty_like(p) for name, p in self.parameters.items()}
        self._rest: Rest | None = None
        self._ahead: Ahead | None = None
        self._faded = 0.0  # logarithm of how far decay may have shrunk the squares since they were summed
        self._largest: Tensor | None = None  # gradient so far, as the scale of what is left of later ones

    def attach(self) -> list:
        def before(optimizer, args, kwargs) -> None:
            self._ahead = self._look_ahead(any(x is not None and x is not optimizer for x in (*args, *kwargs.values())))

        def after(optimizer, args, kwargs) -> None:
            if self._ahead is not None:
                ahead, self._ahead = self._ahead, None
                self._book(ahead)

        return [self.optimizer.register_step_pre_hook(before), self.optimizer.register_step_post_hook(after)]

    # --- before a step --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _look_ahead(self, has_closure: bool) -> Ahead:
        groups = self._groups()
        self._check_kind()
        rest, outside = self._still_at_rest()
        if not self.is_sgd:
            self._refuse(has_closure, self.name)
            slopes = self.forms.generators(self._gradients(), self._before)
            return Ahead(groups, rest, outside, {}, slopes=slopes)
        buffers = dict(zip(self.parameters, self._buffers(), strict=True))
        rates = {name: sgd_rates(groups[name], buffer is not None) for name, buffer in buffers.items()}
        memory = pull = None
        if any(rate.buffer for rate in rates.values()):
            memory = _of_last_step(rest, groups) or (self._of_buffers(buffers), dict.fromkeys(buffers, 1.0))
        if self.forms.differ({name: rate.gradient for name, rate in rates.items()}):
            self._refuse(has_closure, "different rates for one law's parameters")
            (pull,) = self.forms.pairs((Step(self._gradients()), self._before))  # some optimizers overwrite gradients
        return Ahead(groups, rest, outside, rates, memory, pull)

    def _groups(self) -> dict[str, dict]:
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.parameters.items() if id(p) not in groups]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among the optimizer's parameters, so "
                "one side of the balance cannot move and no law holds; give the optimizer model.parameters()"
            )
        return {name: groups[id(p)] for name, p in self.parameters.items()}

    def _check_kind(self) -> None:
        for name, p in self.parameters.items():
            old = self._before[name]
            if p.dtype != old.dtype or p.device != old.device:
                raise ValueError(
                    f"{name} was {old.dtype} on {old.device} when the ledger was made and is {p.dtype} on {p.device} "
                    "now, so its steps cannot be booked to the stated precision; convert or move the model first, "
                    "close() this ledger and make a new one"
                )

    def _still_at_rest(self) -> tuple[Rest, tuple[Tensor, Tensor] | None]:
        """The weights as they are now, and what was written to them since the last step."""
        rest = self._rest
        if rest is None:
            return self._rest_afresh(), None
        weights, buffers = self._versions()
        if weights != rest.weights:
            charges, scale = self.forms.form(rest.squares), self.forms.scale(rest.squares, self._before)
            rest = self._rest_afresh()
            return rest, (self.forms.form(rest.squares) - charges, scale)
        if buffers != rest.buffers:
            rest = replace(rest, last=None)
        return rest, None

    def _refuse(self, has_closure: bool, reason: str) -> None:
        if has_closure:
            raise ValueError(
                f"for {reason} the ledger reads the gradient before the step, and step(closure) computes it inside; "
                "call backward() first, and step() without a closure"
            )

    # --- after it -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _book(self, ahead: Ahead) -> None:
        forms, old, squares = self.forms, self._before, ahead.rest.squares
        scale = forms.scale(squares, old)

        def step(name):
            old[name].sub_(self.parameters[name])  # minus the step

        moved = forms.pairs((Step(old), Step(old), step), (Step(old), self._weights()))
        scale = torch.maximum(scale, forms.scale(moved[0], old))  # a step may be longer than the weights
        square, product, charges = forms.form(torch.cat([moved, squares[None]]))
        change = -2 * product - square
        causes = {"finite_step": square}
        slope = cosine = None
        if ahead.slopes is None:
            causes |= self._causes(ahead, charges)
        else:
            causes["optimizer"] = -2 * (product + square)
            slope, cosine = self._judge(*ahead.slopes)
        if ahead.outside is not None:
            causes["outside"], earlier = ahead.outside
            change, charges = change + causes["outside"], charges - causes["outside"]
            scale = torch.maximum(scale, earlier)  # rounding is that of the larger weights
        self.ledger._enter(change, scale, charges, causes, slope, cosine)
        self._rest = self._rest_after(ahead, moved)

    def _causes(self, ahead: Ahead, charges: Tensor) -> dict[str, Tensor]:
        """What momentum, decay and unequal rates make of a step of SGD."""
        causes, parameters = {}, self.parameters.items()
        rates = {name: STILL if p.grad is None else ahead.rates[name] for name, p in parameters}
        if ahead.memory is not None:
            pairs, scales = ahead.memory
            causes["momentum"] = -2 * self.forms.form(pairs, [scales[name] * rates[name].buffer for name in rates])
        of_decay = [rate.parameter for rate in rates.values()]
        if any(of_decay):
            same = len(set(of_decay)) == 1 and not self.forms.has_shifts
            shrunk = self.forms.as_steps(ahead.rest.squares)
            causes["decay"] = -2 * (of_decay[0] * charges if same else self.forms.form(shrunk, of_decay))
        if ahead.pull is not None:
            signs = {name: -1.0 if ahead.groups[name]["maximize"] else 1.0 for name in rates}
            causes["rates"] = -2 * self.forms.excess(ahead.pull, [signs[name] * rates[name].gradient for name in rates])
        return causes

    def _judge(self, along: Tensor, slope: Tensor, generator: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient's part along the generator, against the largest gradient so far and as a cosine.

        Near a minimum the gradient is a small difference of large terms, and its own rounding is relative to those.
        """
        self._largest = slope if self._largest is None else torch.maximum(self._largest, slope)
        reference, lengths = self._largest * generator, slope * generator
        zero = torch.zeros_like(along)
        # of a direction without effect all of the gradient is the rounding of larger ones
        noise = _OF_ROUNDING * torch.finfo(self.dtype).eps * self._largest.max() * generator
        along = torch.where(along.abs() > noise, along, zero)
        relative = torch.where(reference > 0, along.abs() / reference, along.abs())
        return relative, torch.where(lengths > 0, along / lengths, zero)

    # --- the weights at rest --------------------------------------------------------------------------------------

    def _rest_afresh(self) -> Rest:
        torch._foreach_copy_(list(self._before.values()), list(self.parameters.values()))
        self._faded = 0.0
        weights, buffers = self._versions()
        return Rest(self.forms.pairs((self._before, self._before))[0], weights, buffers, None)

    def _rest_after(self, ahead: Ahead, moved: Tensor) -> Rest:
        """The squares from the last step's, or summed afresh every so often."""
        self._faded += max(fading(group) for group in ahead.groups.values())
        if self.ledger.steps % _AFRESH == 0 or self._faded > 1 or self.forms.has_matrices:
            rest = self._rest_afresh()
        else:
            torch._foreach_copy_(list(self._before.values()), list(self.parameters.values()))
            rest = Rest(ahead.rest.squares - 2 * moved[1] - moved[0], *self._versions(), None)
        if self.is_sgd and self._keeps_its_buffer(ahead.groups, rest):
            rest = replace(rest, last=(moved[1], {name: float(group["lr"]) for name, group in ahead.groups.items()}))
        return rest

    def _keeps_its_buffer(self, groups: dict[str, dict], rest: Rest) -> bool:
        """Whether the step was the buffer times the rate, for every parameter."""
        has_buffer = dict(zip(self.parameters, rest.buffers, strict=True))
        return all(p.grad is not None for p in self.parameters.values()) and not any(
            group["nesterov"] or (has_buffer[name] and not group["momentum"])  # a buffer laid aside for a while
            for name, group in groups.items()
        )

    def _versions(self) -> tuple[Versions, list[tuple[int, int] | None]]:
        weights = [p._version for p in self.parameters.values()]
        return weights, [None if b is None else (id(b), b._version) for b in self._buffers()]

    def _buffers(self) -> list[Tensor | None]:
        state = self.optimizer.state  # whose [] would add entries to it
        return [state.get(p, {}).get("momentum_buffer") for p in self.parameters.values()]

    def _of_buffers(self, buffers: dict[str, Tensor | None]) -> Tensor:
        old = self._before
        held = Step({name: old[name] if b is None else b for name, b in buffers.items()})
        return self.forms.pairs((held, old))[0]

    def _weights(self) -> Tensors:
        return dict(self.parameters)

    def _gradients(self) -> Tensors:
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()}


def _of_last_step(rest: Rest, groups: dict[str, dict]) -> tuple[Tensor, dict[str, float]] | None:
    """The buffer's pairings with the weights from the last step's: a heavy ball's step is -lr times its buffer.

    Spares a look at the buffers. Where the rate has grown much since, the last step's rounding would be enlarged.
    """
    if rest.last is None:
        return None
    pairs, rate = rest.last
    if any(rate[name] < float(group["lr"]) / 2 for name, group in groups.items()):
        return None
    return pairs, {name: 1 / x if x else 0.0 for name, x in rate.items()}


def _find(model: nn.Module, terms: dict[str, Term]) -> dict[str, nn.Parameter]:
    """The laws' parameters in a model, which may be wrapped (``DistributedDataParallel``, ``torch.compile``)."""
    named = dict(model.named_parameters())
    for name, p in list(named.items()):
        bare = name  # wrappers come in any order, and a layer may be called "module" itself
        while bare.startswith(("module.", "_orig_mod.")):
            bare = bare.partition(".")[2]
            named.setdefault(bare, p)
    for name, term in terms.items():
        if name not in named or tuple(named[name].shape) != term.shape:
            got = f"one of shape {tuple(named[name].shape)}" if name in named else "none"
            raise ValueError(
                f"the laws need a parameter {name} of shape {term.shape}, the model has {got}; make the laws from "
                "this model's own flat_loss"
            )
    found = {name: named[name] for name in terms}
    dtypes = {p.dtype for p in found.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float64, torch.float32}:
        raise ValueError(
            f"the laws' parameters are in {', '.join(sorted(str(d) for d in dtypes))}; the ledger needs all in float64 "
            "or all in float32: half precision rounds away more than a step changes. Keep the weights in float32 and "
            "use autocast"
        )
    return found
