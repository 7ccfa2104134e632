"""The steps of a ``torch.optim`` optimiser, as the ledger follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlcompanion.laws.terms import Term
from nlcompanion.laws.under_optimizers import _fading, _rates
from nlcompanion.monitoring.stacked_forms import Step, Tensors

if TYPE_CHECKING:
    from nlcompanion.monitoring.ledger import Ledger

_AFRESH = 256  # steps after which squares are summed anew, lest the rounding of their changes add up

_OF_ROUNDING = 8  # units in the last place of the largest gradient of any law


class OfOptimizer:
    """The steps of a ``torch.optim.Optimizer``, seen through its hooks."""

    def __init__(self, ledger: Ledger, model: nn.Module, optimizer: torch.optim.Optimizer):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be the torch.nn.Module that is trained, got {type(model).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; for descend() pass rule="
            )
        self.ledger, self.optimizer, self.books = ledger, optimizer, ledger._books
        self.parameters = _find(model, self.books.terms)
        self.name = type(optimizer).__name__
        self.is_sgd = isinstance(optimizer, torch.optim.SGD)
        self.dtype = next(iter(self.parameters.values())).dtype
        self._groups_of(optimizer)
        if self.books.has_shifts:
            with torch.no_grad():
                self.books.floor = 1e-3 * max(float(p.abs().mean()) for p in self.parameters.values())
        self.books.to(next(iter(self.parameters.values())).device)
        self._before = {name: torch.empty_like(p) for name, p in self.parameters.items()}
        self._position = self._last = self._seen = self._groups = None
        self._faded = 0.0  # logarithm of how far decay may have shrunk the squares since they were summed
        self._largest: Tensor | None = None  # gradient so far, as the scale of what is left of later ones

    def attach(self) -> list:
        return [
            self.optimizer.register_step_pre_hook(self._pre),
            self.optimizer.register_step_post_hook(self._post),
        ]

    def _groups_of(self, optimizer) -> dict[str, dict]:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.parameters.items() if id(p) not in groups]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among the optimizer's parameters, so "
                "one side of the balance cannot move and no law holds; give the optimizer model.parameters()"
            )
        return {name: groups[id(p)] for name, p in self.parameters.items()}

    @torch.no_grad()
    def _pre(self, optimizer, args, kwargs) -> None:
        groups, old = self._groups_of(optimizer), self._before
        self._same_kind()
        self._outside = None
        weights, held = self._versions()
        if self._seen is None:
            self._remember()
        elif weights != self._seen[0]:  # someone moved the weights since the last step
            charges, scale = self.books.form(self._position), self.books.scale(self._position, old)
            self._remember()
            self._outside = self.books.form(self._position) - charges, scale
        elif held != self._seen[1]:
            self._last = None
        self._groups = groups
        if not self.is_sgd:
            self._refuse_closure(args, kwargs, self.name)
            self._slopes = self.books.generators(self._gradients(), old)
            return
        buffers = dict(zip(self.parameters, self._buffers(), strict=True))
        self._rates = {name: _rates(groups[name], buffer is not None) for name, buffer in buffers.items()}
        self._rate = {name: float(group["lr"]) for name, group in groups.items()}
        self._memory = self._pull = None
        if any(of_buffer for _, of_buffer, _ in self._rates.values()):
            self._memory = self._of_last_step() or (self._of_buffers(buffers), dict.fromkeys(buffers, 1.0))
        if self.books.differ({name: of_gradient for name, (of_gradient, _, _) in self._rates.items()}):
            self._refuse_closure(args, kwargs, "different rates for one law's parameters")
            (self._pull,) = self.books.pairs((Step(self._gradients()), old))  # some optimizers overwrite gradients

    @torch.no_grad()
    def _post(self, optimizer, args, kwargs) -> None:
        books, old, new, position = self.books, self._before, self.parameters, self._position
        scale = books.scale(position, old)

        def step(name):
            old[name].sub_(new[name])  # minus the step

        moved = books.pairs((Step(old), Step(old), step), (Step(old), new))
        scale = torch.maximum(scale, books.scale(moved[0], old))  # a step may be longer than the weights
        square, product, charges = books.form(torch.cat([moved, position[None]]))
        change = -2 * product - square
        causes, judged = {"finite_step": square}, ()
        if self.is_sgd:
            self._of_sgd(causes, charges)
        else:
            causes["optimizer"], judged = -2 * (product + square), self._judge()
        if self._outside is not None:
            causes["outside"], earlier = self._outside
            change, charges = change + causes["outside"], charges - causes["outside"]
            scale = torch.maximum(scale, earlier)  # rounding is that of the larger weights
        self.ledger._enter(change, scale, charges, causes, *judged)
        self._remember(moved)

    def _remember(self, moved: Tensor | None = None) -> None:
        """Where the weights are now, and their squares: from the last step's, or afresh every so often."""
        torch._foreach_copy_(list(self._before.values()), list(self.parameters.values()))
        self._seen = self._versions()
        if moved is not None:
            self._faded += max(_fading(group) for group in self._groups.values())
        if moved is None or self.ledger.steps % _AFRESH == 0 or self._faded > 1 or self.books.has_matrices:
            (self._position,) = self.books.pairs((self._before, self._before))
            self._faded = 0.0
        else:
            self._position = self._position - 2 * moved[1] - moved[0]
        self._last = None
        if moved is not None and self.is_sgd and self._keeps_its_buffer():
            self._last = moved[1], self._rate

    def _keeps_its_buffer(self) -> bool:
        """Whether the step was the buffer times the rate, for every parameter."""
        groups, has_buffer = self._groups.items(), dict(zip(self.parameters, self._seen[1], strict=True))
        return all(p.grad is not None for p in self.parameters.values()) and not any(
            group["nesterov"] or (has_buffer[name] and not group["momentum"])  # a buffer laid aside for a while
            for name, group in groups
        )

    def _of_last_step(self) -> tuple[Tensor, dict[str, float]] | None:
        """The buffer's pairings with the weights from the last step's: a heavy ball's step is -lr times its buffer.

        Spares a look at the buffers. Where the rate has grown much since, the last step's rounding would be enlarged.
        """
        if self._last is None:
            return None
        pairs, rate = self._last
        if any(rate[name] < now / 2 for name, now in self._rate.items()):
            return None
        return pairs, {name: 1 / x if x else 0.0 for name, x in rate.items()}

    def _of_buffers(self, buffers: dict[str, Tensor | None]) -> Tensor:
        old = self._before
        held = Step({name: old[name] if b is None else b for name, b in buffers.items()})
        return self.books.pairs((held, old))[0]

    def _versions(self) -> tuple[list, list]:
        """What tells that a weight or a buffer was written to, or replaced."""
        weights = [p._version for p in self.parameters.values()]
        return weights, [None if b is None else (id(b), b._version) for b in self._buffers()]

    def _buffers(self) -> list[Tensor | None]:
        state = self.optimizer.state  # whose [] would add entries to it
        return [state.get(p, {}).get("momentum_buffer") for p in self.parameters.values()]

    def _same_kind(self) -> None:
        for name, p in self.parameters.items():
            old = self._before[name]
            if p.dtype != old.dtype or p.device != old.device:
                raise ValueError(
                    f"{name} was {old.dtype} on {old.device} when the ledger was made and is {p.dtype} on {p.device} "
                    "now, so its steps cannot be booked to the stated precision; convert or move the model first, "
                    "close() this ledger and make a new one"
                )

    def _of_sgd(self, causes: dict[str, Tensor], charges: Tensor) -> None:
        """What momentum, decay and unequal rates make of a step of SGD."""
        books, parameters = self.books, self.parameters.items()  # one without a gradient is passed over
        rates = {name: (0.0, 0.0, 0.0) if p.grad is None else self._rates[name] for name, p in parameters}
        if self._memory is not None:
            pairs, scales = self._memory
            causes["momentum"] = -2 * books.form(pairs, [scales[name] * rates[name][1] for name in rates])
        of_decay = [x for *_, x in rates.values()]
        if any(of_decay):
            same = len(set(of_decay)) == 1 and not books.has_shifts
            shrunk = of_decay[0] * charges if same else books.form(books.as_steps(self._position), of_decay)
            causes["decay"] = -2 * shrunk
        if self._pull is not None:
            signs = [-1.0 if self._groups[name]["maximize"] else 1.0 for name in rates]
            pull = [sign * x for sign, (x, *_) in zip(signs, rates.values(), strict=True)]
            causes["rates"] = -2 * books.excess(self._pull, pull)

    def _gradients(self) -> Tensors:
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()}

    def _refuse_closure(self, args, kwargs, reason: str) -> None:
        if any(x is not None and x is not self.optimizer for x in (*args, *kwargs.values())):
            raise ValueError(
                f"for {reason} the ledger reads the gradient before the step, and step(closure) computes it inside; "
                "call backward() first, and step() without a closure"
            )

    def _judge(self) -> tuple[Tensor, Tensor]:
        """The gradient's part along the generator, against the largest gradient so far and as a cosine.

        Near a minimum the gradient is a small difference of large terms, and its own rounding is relative to those.
        """
        along, slope, generator = self._slopes
        self._largest = slope if self._largest is None else torch.maximum(self._largest, slope)
        reference, lengths = self._largest * generator, slope * generator
        zero = torch.zeros_like(along)
        # of a direction without effect all of the gradient is the rounding of larger ones
        noise = _OF_ROUNDING * torch.finfo(self.dtype).eps * self._largest.max() * generator
        along = torch.where(along.abs() > noise, along, zero)
        relative = torch.where(reference > 0, along.abs() / reference, along.abs())
        return relative, torch.where(lengths > 0, along / lengths, zero)


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
