"""What the ledger computes with: the forms of many laws at once, and the two runs that it can follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlcompanion._laws_form import Law
from nlcompanion._laws_terms import Gram, Squares, Term
from nlcompanion.learning_rules import LearningRule

if TYPE_CHECKING:
    from nlcompanion._laws_ledger import Ledger

Tensors = dict[str, Tensor]
_AFRESH = 256  # steps after which squares are summed anew, lest the rounding of their changes add up


class Books:
    """The forms of several laws as one vector, law after law; what laws share of a tensor is computed once.

    Every entry of every law is a weighted sum over a few numbers of :meth:`pairs`, so that all laws together cost a
    handful of operations whatever their number.
    """

    def __init__(self, laws: tuple[Law, ...]):
        self.laws = laws
        self.terms = {term.name: term for law in laws for term in law._terms}  # one of each parameter
        self.places = _consecutive(math.prod(law.shape) for law in laws)
        self.keys = {_key(term): term for law in laws for term in law._terms}
        ways: dict[str, list[Term]] = {}
        for term in self.keys.values():
            ways.setdefault(term.name, []).append(term)
        self._ways, self._scratch = ways, _Scratch()
        where = dict(zip(self.keys, _consecutive(_count(term) for term in self.keys.values()), strict=True))
        names, size, most = list(self.terms), self.places[-1].stop, max(len(law._terms) for law in laws)
        self._index = torch.zeros(size, most, dtype=torch.long)
        self._owner = torch.zeros(size, most, dtype=torch.long)  # which parameter
        self._coefficient = torch.zeros(size, most, dtype=torch.float64)
        for place, law in zip(self.places, laws, strict=True):
            for k, term in enumerate(law._terms):
                span = where[_key(term)]
                self._index[place, k] = torch.arange(span.start, span.stop)
                self._owner[place, k] = names.index(term.name)
                self._coefficient[place, k] = term.coefficient
        self._matrices = [(place, law) for place, law in zip(self.places, laws, strict=True) if law._is_matrix]

    @property
    def has_matrices(self) -> bool:
        return bool(self._matrices)

    def to(self, device: torch.device) -> None:
        for name in ("_index", "_owner", "_coefficient"):
            setattr(self, name, getattr(self, name).to(device))

    def pairs(self, *stages: tuple[Tensors, Tensors] | tuple[Tensors, Tensors, Callable[[str], None]]) -> Tensor:
        """Every pairing of two points (or steps, gradients) that any law needs, in float64.

        Args:
            stages: pairs of points ``(x, y)``, each by name, or ``(x, y, first)`` with ``first(name)`` called before
                that parameter's turn. All stages of one parameter follow each other, while it is in the processor's
                cache: there several passes cost little more than one.

        Returns:
            Shape ``(len(stages), m)``.
        """
        values: list[dict[tuple, Tensor]] = [{} for _ in stages]
        for name, terms in self._ways.items():
            for value, (x, y, *first) in zip(values, stages, strict=True):
                for prepare in first:
                    prepare(name)
                value.update(zip(map(_key, terms), _pair(terms, x[name], y[name], self._scratch), strict=True))
        flat = torch.cat([value[key].reshape(-1) for value in values for key in self.keys])
        return flat.double().view(len(stages), -1)

    def form(self, pairs: Tensor, rates: list[float] | None = None) -> Tensor:
        """All laws' forms, shape ``(..., size)``, from ``pairs`` of shape ``(..., m)``; each parameter's share times
        its rate."""
        weight = self._coefficient
        if rates is not None:
            if len(set(rates)) == 1:
                return rates[0] * self.form(pairs)
            weight = weight * self._each(rates)
        return (pairs[..., self._index] * weight).sum(-1)

    def excess(self, pairs: Tensor, rates: list[float]) -> Tensor:
        """As :meth:`form`, with each rate less that of the law's first parameter."""
        rate = self._each(rates)
        return (pairs[..., self._index] * self._coefficient * (rate - rate[:, :1])).sum(-1)

    def _each(self, rates: list[float]) -> Tensor:
        return torch.tensor(rates, dtype=torch.float64, device=self._owner.device)[self._owner]

    def differ(self, rates: dict[str, float]) -> bool:
        """Whether parameters of one law have different rates."""
        return any(len({rates[term.name] for term in law._terms}) > 1 for law in self.laws)

    def scale(self, pairs: Tensor, x: Tensors) -> Tensor:
        """How large the parameters are of which each law speaks: squared lengths, shape ``(size,)``."""
        scale = (pairs[self._index] * self._coefficient.abs()).sum(-1)
        for place, law in self._matrices:  # one figure for all entries
            scale[place] = sum(torch.linalg.vector_norm(x[term.name]) ** 2 for term in law._terms)
        return scale

    def generators(self, g: Tensors, x: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """``(form(g, x), |g|, |generator|)`` of all laws, of each the length over its own parameters."""
        lengths = []
        for law in self.laws:
            shares = [term.lengths(g[term.name], x[term.name]) for term in law._terms]
            lengths.append([sum(share[k] for share in shares).reshape(-1).double().sqrt() for k in (0, 1)])
        slope, generator = (torch.cat([pair[k] for pair in lengths]) for k in (0, 1))
        return self.form(self.pairs((g, x))[0]), slope, generator


def _key(term: Term) -> tuple:
    """The same for terms of two laws that pair a tensor in the same way."""
    how = (term.axis, term.index) if isinstance(term, Squares) else getattr(term, "rows", None)
    return type(term), term.name, how


def _count(term: Term) -> int:
    """How many numbers a pairing has."""
    if isinstance(term, Squares):
        return 1 if term.axis is None or term.index is not None else term.shape[term.axis]
    return term.shape[0 if isinstance(term, Gram) and term.rows else -1] ** 2


def _consecutive(sizes: Iterable[int]) -> list[slice]:
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


class _Scratch:
    """Room for a product, kept from step to step: to ask for it anew costs more than the product itself."""

    def __init__(self):
        self.room: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        if (
            self.room is None
            or self.room.numel() < x.numel()
            or (self.room.dtype, self.room.device) != (x.dtype, x.device)
        ):
            self.room = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        return self.room[: x.numel()].view(x.shape)


def _pair(terms: list[Term], x: Tensor, y: Tensor, scratch: _Scratch) -> list[Tensor]:
    """A tensor's pairings in all the ways asked for. Speed is in not writing products that a kernel can do without."""
    stacked = [isinstance(t, Squares) and t.axis is not None and t.index is None for t in terms]
    if x.ndim == 2 and x is y and len(terms) == 1 and stacked[0] and terms[0].axis == 0:
        return [torch.linalg.vector_norm(x, dim=1).square()]
    product = torch.mul(x, y, out=scratch.like(x)) if any(stacked) else None
    values = []
    for term, is_stacked in zip(terms, stacked, strict=True):
        if is_stacked:
            others = [k for k in range(x.ndim) if k != term.axis]
            values.append(product.sum(others) if others else product.clone())
        elif isinstance(term, Squares) and term.index is None:
            values.append(torch.dot(x.reshape(-1), y.reshape(-1)))
        else:
            values.append(term.pair(x, y))
    return values


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
            (self._pull,) = self.books.pairs((self._gradients(), old))  # some optimizers overwrite gradients

    @torch.no_grad()
    def _post(self, optimizer, args, kwargs) -> None:
        books, old, new, position = self.books, self._before, self.parameters, self._position
        scale = books.scale(position, old)

        def step(name):
            old[name].sub_(new[name])  # minus the step

        moved = books.pairs((old, old, step), (old, new))
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
        return self.books.pairs(({name: old[name] if b is None else b for name, b in buffers.items()}, old))[0]

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
            same = len(set(of_decay)) == 1
            causes["decay"] = -2 * (of_decay[0] * charges if same else books.form(self._position, of_decay))
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
        relative = torch.where(reference > 0, along.abs() / reference, along.abs())
        return relative, torch.where(lengths > 0, along / lengths, zero)


def _rates(group: dict, buffered: bool) -> tuple[float, float, float]:
    """What a step of torch.optim.SGD makes of gradient, buffer and parameter: d = -(r_g g + r_b b + r_k theta)."""
    lr, beta = float(group["lr"]), float(group["momentum"])
    if group["nesterov"]:
        of_gradient, of_buffer = 1 + beta, beta**2 * buffered
    elif beta and buffered:
        of_gradient, of_buffer = 1 - float(group["dampening"]), beta
    else:  # without momentum, or with a buffer that starts as the gradient itself, undampened
        of_gradient, of_buffer = 1.0, 0.0
    return lr * of_gradient, lr * of_buffer, lr * of_gradient * float(group["weight_decay"])


def _fading(group: dict) -> float:
    """By how much weight decay shrinks the logarithm of a squared weight in a step, in the long run."""
    lr, decay, momentum = (float(group.get(name) or 0.0) for name in ("lr", "weight_decay", "momentum"))
    return 2 * lr * decay / max(1 - momentum, 1e-3)


class OfDescend:
    """The steps of :func:`descend`, as its ``record`` shows them: the buffer is the last step over the rate."""

    def __init__(self, ledger: Ledger, rule: LearningRule):
        if not isinstance(rule, LearningRule):
            raise TypeError(f"rule must be a LearningRule such as sgd(lr=0.1), got {type(rule).__name__}")
        if rule.steps is None:
            raise ValueError(f"{rule.name} has no discrete steps to book; Law.under(rule).residual measures its flow")
        self.ledger, self.rule, self.books, self.name = ledger, rule, ledger._books, rule.name
        self.last: tuple[float, Tensors] | None = None
        self.step: Tensors | None = None

    def record(self, t: float, q: Tensor, v: Tensor) -> dict[str, float]:
        law = self.books.laws[0]
        point = {name: law._of(q, term).clone() for name, term in self.books.terms.items()}
        if self.last is None:
            self.last = (t, point)
            return {"residual": 0.0}
        before, old = self.last
        if abs(t - before - self.rule.time_step) > 1e-6 * self.rule.time_step:
            raise ValueError(
                f"the ledger books every step, got t = {t:g} after {before:g} at a time step of "
                f"{self.rule.time_step:g}; leave descend's every at 1 (the ledger has its own) and start a new Ledger "
                "for a new run"
            )
        self._book(old, point)
        self.last = (t, point)
        return {"residual": float(self.ledger._latest.max())}

    def _book(self, old: Tensors, new: Tensors) -> None:
        books, lr, k = self.books, self.rule.lr, self.rule.weight_decay
        step = {name: new[name] - old[name] for name in new}
        position, squares, product = books.pairs((old, old), (step, step), (step, new))
        charges, square, product = books.form(torch.stack([position, squares, product]))
        entry, finite = {}, square
        if self.step is not None:
            last = self.step
            memory, before = books.form(books.pairs((last, old), (last, last)))
            beta = self.rule.steps.memory_of(self.ledger.steps)
            if self.rule.steps.looks_ahead:  # the gradient acts at y = w + beta d, which memory alone has reached
                entry["momentum"] = 2 * beta * memory + beta**2 * before
                free = {name: step[name] - beta * last[name] for name in step}
                (finite,) = books.form(books.pairs((free, free)))
                if books.has_matrices:  # whose forms do not commute
                    one, other = books.form(books.pairs((last, step), (step, last)))
                    entry["momentum"] = entry["momentum"] + beta * (one - other)
            else:
                entry["momentum"] = 2 * beta * memory
        if k:
            share = self.rule.steps.first_share if self.step is None else 1.0
            entry["decay"] = -2 * share * lr * k * charges
        causes = {"finite_step": finite, **entry}
        scale = torch.maximum(books.scale(position, old), books.scale(squares, step))
        self.ledger._enter(2 * product - square, scale, charges, causes)
        self.step = step


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
