"""Exact bookkeeping of a discrete run: every charge, every step, split into causes; public in ``laws``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion._arguments import counted, described, number_from
from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.laws.law import Law
from nlcompanion.laws.under_optimizers import CAUSES
from nlcompanion.monitoring.descent_steps import DescentSteps
from nlcompanion.monitoring.diagnosis import undiagnosed
from nlcompanion.monitoring.optimizer_steps import OptimizerSteps
from nlcompanion.monitoring.precision import TOLERANCES
from nlcompanion.monitoring.stacked_forms import StackedForms


class LedgerError(AssertionError):
    """A charge moved by more than its causes explain: the gradients do not have the symmetry, or the steps are not
    the optimiser's."""


@dataclass(frozen=True, repr=False)
class Account:
    r"""One law's account: what moved its charge, entry by entry. All tensors have shape ``(T, *law.shape)``.

    ``change == finite_step + momentum + decay + rates + source + outside + optimizer + residual`` for every entry. Of a
    matrix law the symmetric part of ``change`` is the charge's; its antisymmetric part is that of ``2 form(d, q)``,
    booked alike.

    Attributes:
        law: whose account it is.
        steps: number of steps taken by the end of each entry, shape ``(T,)``.
        change: of the charge, in units of a squared parameter.
        finite_step: ``form(d, d)``, what is left of a step because it is not infinitesimal.
        momentum: what the buffer of earlier gradients adds.
        decay: what weight decay takes.
        rates: what different learning rates for the law's parameters do; 0 where they have one.
        source: what activations without a symmetry add to their neurons' balance; 0 for all other laws.
        outside: what was done to the weights between the steps, such as a projection.
        optimizer: for optimisers other than SGD ``2 form(d, q)``, all that is not the finite step.
        residual: what none of these explains; the symmetry forbids it, so it is rounding.
        cosine: between gradient and generator, of the last step of each entry; None for SGD, whose residual tells
            as much.
        worst: the largest relative residual of any single step, shape ``law.shape``; what :meth:`Ledger.check` judges.
    """

    law: Law
    steps: Tensor
    change: Tensor
    finite_step: Tensor
    momentum: Tensor
    decay: Tensor
    rates: Tensor
    source: Tensor
    outside: Tensor
    optimizer: Tensor
    residual: Tensor
    cosine: Tensor | None
    worst: Tensor

    def __repr__(self) -> str:
        entries, worst = len(self.steps), float(self.worst.max())
        return f"Account({_short(self.law)}: {entries} {'entry' if entries == 1 else 'entries'}, worst {worst:.1e})"

    @property
    def cumulative(self) -> dict[str, Tensor]:
        """The sums up to each entry, by cause, ``change`` and ``residual`` included."""
        return {name: getattr(self, name).cumsum(0) for name in ("change", *CAUSES, "residual")}


class Ledger:
    r"""Books a training run: each step's change of every charge, split exactly into its causes.

    A step of ``torch.optim.SGD`` is :math:`d = -\eta\,(c_g(g + k\theta) + c_b b)` with the buffer :math:`b` of earlier
    steps. Since :math:`\mathrm{form}(g, \theta) = 0` for every mini-batch, the change
    :math:`2\,\mathrm{form}(d, \theta) + \mathrm{form}(d, d)` of a charge is

    .. math:: \underbrace{\mathrm{form}(d, d)}_{\text{finite step}}
              \underbrace{-\,2\eta c_b\,\mathrm{form}(b, \theta)}_{\text{momentum}}
              \underbrace{-\,2\eta c_g k\,\mathrm{form}(\theta, \theta)}_{\text{decay}}

    to rounding, with :math:`c_g = 1, c_b = \beta` for heavy ball, :math:`c_g = 1 + \beta, c_b = \beta^2` for
    ``nesterov=True``, and :math:`c_g = 1 - \tau` once a buffer with dampening :math:`\tau` exists. What is left is the
    residual, which a gradient with a fault in it raises at once.

    ::

        ledger = Ledger(homogeneous_laws(f), model, optimizer)
        ...                    # the training loop, unchanged
        print(ledger)          # a table by causes
        ledger.check()         # LedgerError if a symmetry was broken

    It reads the hyperparameters at every step, so schedules, warm restarts and several parameter groups are booked as
    they are. Weights that are written to between steps (projected, averaged) are noticed and booked as ``outside``,
    unless it is done through ``.data``, which leaves no trace: with SGD it ends in the residual. For other optimisers
    (Adam) the linear part of the step is booked as ``optimizer``, and :meth:`check` looks at the gradient's component
    along the symmetry instead; a write through ``.data`` is then booked as ``optimizer`` too, and not judged. Nothing
    leaves the device, and no step waits for it, until a result is asked for.

    Args:
        laws: one law or several, made from a ``flat_loss`` of this model.
        model: the model that is trained; parameters in float64 or float32.
        optimizer: any ``torch.optim.Optimizer`` over its parameters. Not one whose ``step(closure)`` evaluates
            several gradients, such as LBFGS.
        rule: instead of a model and an optimizer, the learning rule of a :func:`descend`, which then takes
            ``record=ledger.record``.
        every: keep one entry for so many steps, summed over them, so that entries always add up to the whole; None
            keeps the totals alone, in constant memory.

    Raises:
        ValueError: no law; a parameter that the model or the optimizer lacks; half precision, where the rounding of
            the weights is larger than what is booked; a learning rule without steps.
        TypeError: arguments of other kinds.

    Source: the bookkeeping is this book's; for gradient flow GU Eqs. 31 and 42 are what remains of it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, homogeneous_laws, mlp
        >>> model, x, y = mlp((4, 3, 2)), torch.eye(4).double(), torch.tensor([0, 1, 0, 1])
        >>> f = flat_loss(model, x, y, nn.functional.cross_entropy)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        >>> ledger = Ledger(homogeneous_laws(f), model, optimizer)
        >>> for batch in ([0, 1], [2, 3], [0, 3]):
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        ...     optimizer.step()
        >>> ledger.steps, ledger[0].change.shape, ledger.check() < 1e-12
        (3, torch.Size([1, 3]), True)
    """

    def __init__(
        self,
        laws: Law | Iterable[Law],
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        rule: LearningRule | None = None,
        every: int | None = None,
    ):
        self.laws = _laws(laws)
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every must be an integer >= 1, or None for the totals alone, got {every!r}")
        self.every, self.steps = every, 0
        self._forms = StackedForms(self.laws)
        self._entries: list[tuple[int, Tensor, Tensor | None]] = []
        self._block: Tensor | None = None  # sums since the last entry
        self._found: _Found | None = None
        self._largest = 0.0  # residual so far
        self._skipped: Tensor | int = 0
        self._first: _Breach | None = None
        self._diagnosis: str | None = None  # of what is behind it
        self._handles: list = []
        self._follower: DescentSteps | OptimizerSteps
        if rule is not None:
            if model is not None or optimizer is not None:
                raise ValueError("give a model with its optimizer, or rule= for descend, not both")
            if any(law.sources for law in self.laws):
                raise ValueError(
                    "a law with a source is booked with the model's activations, and descend has none; give a model "
                    "with its optimizer, or leave these laws out: [law for law in laws if not law.sources]"
                )
            self._follower = DescentSteps(self, rule)
            self.tolerance = TOLERANCES[torch.float64]
        else:
            follower = OptimizerSteps(self, model, optimizer)
            self._follower, self._handles = follower, follower.attach()
            self.tolerance = TOLERANCES[follower.dtype]

    @property
    def record(self) -> Callable[[float, Tensor, Tensor], dict[str, float]]:
        """What :func:`descend` takes as ``record``; returns the relative residual of the last step.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from nlcompanion import descend, flat_loss, homogeneous_law, mlp, nesterov
            >>> x, y = torch.eye(4).double(), torch.tensor([0, 1, 0, 1])
            >>> f, rule = flat_loss(mlp((4, 3, 2)), x, y, nn.functional.cross_entropy), nesterov(lr=0.1)
            >>> ledger = Ledger(homogeneous_law(f, 1), rule=rule)
            >>> run = descend(rule, f, f.q0, steps=20, record=ledger.record)
            >>> ledger.steps, ledger.check() < 1e-12
            (20, True)
        """
        if not isinstance(self._follower, DescentSteps):
            raise ValueError("this ledger listens to its optimizer; for descend make one with Ledger(laws, rule=rule)")
        return self._follower.record

    def close(self) -> None:
        """Stop listening to the optimizer; what was booked stays. ``with Ledger(...)`` does it at the end."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    # --- what it found --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.laws)

    def __getitem__(self, k: int) -> Account:
        """The account of one law, in the order in which they were given."""
        where, law = self._forms.places[k], self.laws[k]
        found, entries = self._need_steps(), list(self._entries)
        if self._block is not None:
            entries.append((self.steps, self._block, found.cosine))
        rows = torch.stack([sums for _, sums, _ in entries])[:, :, where].reshape(len(entries), -1, *law.shape)
        change, *causes = rows.unbind(1)
        cosines = [cosine[where] for *_, cosine in entries if cosine is not None]
        return Account(
            law,
            torch.tensor([step for step, *_ in entries]),
            change,
            **dict(zip(CAUSES, causes, strict=True)),
            residual=change - reduce(torch.add, causes),
            cosine=torch.stack(cosines).reshape(-1, *law.shape) if cosines else None,
            worst=found.worst[where].reshape(law.shape),
        )

    def __iter__(self) -> Iterator[Account]:
        return (self[k] for k in range(len(self)))

    @property
    def residual(self) -> float:
        """The largest residual of any step and law, relative to the squares of the law's parameters."""
        return float(self._need_steps().worst.max())

    def check(self, tol: float | None = None) -> float:
        r"""Insist that the causes explain every change of every charge so far.

        Judged is the residual of each step against :math:`\sum|c|\,|\theta|^2`, the squares that the law compares
        (those of the step, if that is longer);
        for optimisers other than SGD the gradient's component along the symmetry against the largest gradient so far.

        Args:
            tol: relative; None is 1e-12 for float64 and 1e-6 for float32. Under autocast the gradients themselves are
                rounded to half precision: measure a healthy run first.

        Returns:
            The largest figure found, dimensionless.

        Raises:
            LedgerError: with law, neuron and step of the largest violation. It is an ``AssertionError``.
            ValueError: if nothing was booked yet.
        """
        seen = self._need_steps()
        tol = self.tolerance if tol is None else number_from("tol", tol, 0, "a tolerance is a size")
        ratio, step = seen.worst.cpu(), seen.worst_step.cpu()
        worst = int(torch.where(ratio.isnan(), math.inf, ratio).argmax())
        found = float(ratio[worst])
        if found <= tol:
            return found
        most = _Breach(int(step[worst]), worst, found)
        first, cause = self._first or most, self._diagnosis
        law, neuron = self._entry(first.entry)
        text, scale = f"the balance {law.statement!r}{neuron} was broken", self._compared(most.entry)
        if first.step < most.step:
            scale_then = self._compared(first.entry)
            of = "" if scale_then == scale else f" {scale_then}"
            text += f" first at step {first.step} of {self.steps}, by {first.size:.3g}{of}, and most"
            law, neuron = self._entry(most.entry)
            if most.entry != first.entry:
                text += f" in {law.statement!r}{neuron}"
        text += f" at step {most.step} of {self.steps}, by {found:.3g} {scale}; {tol:.3g} is allowed."
        cause = f"The cause: {cause}" if cause else f"Possible causes: {undiagnosed(law, self._follower.name)}"
        raise LedgerError(f"{text} {cause}")

    @property
    def skipped(self) -> int:
        """Steps that moved nothing, as a fused optimizer leaves them out when a ``GradScaler`` found an overflow.

        They count among the steps. What a ``GradScaler`` does not hand on to an optimizer at all is no step.
        """
        return int(self._skipped)

    @property
    def _broken_law(self) -> Law:
        assert self._first is not None
        return self._entry(self._first.entry)[0]

    def _compared(self, entry: int) -> str:
        """What the judged figure of one of all entries is relative to."""
        if self._follower.judges_gradients(entry):
            return "of the gradient's length"
        return "of its parameters' squares" if self.tolerance in TOLERANCES.values() else "of the step's length"

    def _entry(self, place: int) -> tuple[Law, str]:
        """The law that one of all entries belongs to, and which of its entries it is."""
        k = next(k for k, span in enumerate(self._forms.places) if place < span.stop)
        law, inside = self.laws[k], place - self._forms.places[k].start
        return law, f", entry {[int(i) for i in np.unravel_index(inside, law.shape)]}," if law.shape else ""

    def __repr__(self) -> str:
        return f"Ledger({counted(len(self), 'law')}, {counted(self.steps, 'step')} of {self._follower.name})"

    def __str__(self) -> str:
        """A table: for each law what moved its charge in all, a stack's summed over its neurons, a matrix's norms.

        The last column is what :meth:`check` judges: the largest residual of a step, ``relative`` to the law's
        parameters, or for optimisers other than SGD the largest part of the ``gradients`` along the symmetry; it is
        headed ``judged`` where some laws have one and some the other.
        """
        if self._found is None:
            return repr(self)
        used = [name for name in CAUSES if any(getattr(account, name).any() for account in self)]
        # without SGD's formula the residual is 0 by definition, and the gradients are judged instead
        last = self._follower.judged
        lines = [["", "start", "change", *(f"{name.replace('_', ' ')}" for name in used), "residual", last]]
        for account, place in zip(self, self._forms.places, strict=True):
            law = account.law
            shown = (lambda x: x.norm()) if law.is_matrix else (lambda x: x.sum())
            columns = [getattr(account, name).sum(0) for name in ("change", *used, "residual")]
            figures = [f"{float(shown(x)):.6g}" for x in (self._found.start[place], *columns)]
            figures[-1] = f"{float(figures[-1]):.1e}"
            lines.append([_short(law), *figures, f"{float(self._found.worst[place].max()):.1e}"])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        rows = [
            "  ".join(x.rjust(w) if k else x.ljust(w) for k, (x, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join([f"{self.steps} steps of {self._follower.name}", *rows])

    # --- what its followers tell it -------------------------------------------------------------------------------

    def _enter(
        self,
        change: Tensor,
        causes: dict[str, Tensor],
        start: Tensor,
        ratio: Tensor,
        cosine: Tensor | None = None,
        skipped: Tensor | None = None,
    ) -> bool:
        """One step: the change of all charges, its causes, and what is left, relative to what it is compared with.

        Returns:
            Whether this is the first step with more left than rounding, as far as that is known without waiting.
        """
        nothing = torch.zeros_like(change)
        sums = torch.stack([change, *(causes.get(name, nothing) for name in CAUSES)])
        self.steps += 1
        if self._found is None:
            nothing = torch.zeros_like(ratio)
            self._found = _Found(start, nothing, nothing.long(), nothing, None)
        self._add_up(sums, ratio, ratio, cosine)
        if skipped is not None:
            self._skipped = self._skipped + skipped
        return ratio.device.type == "cpu" and not float(ratio.max()) <= self.tolerance and self._notice(ratio)

    def _count_step(self, largest: float) -> bool:
        """One step whose sums come later; returns whether they must come now.

        Args:
            largest: what is left of it, relative to what it is compared with.
        """
        self.steps += 1
        ends_entry = self.every is not None and self.steps % self.every == 0
        is_worst = not largest <= self._largest
        self._largest = largest if is_worst else self._largest
        return ends_entry or is_worst

    def _add_up(self, sums: Tensor, worst: Tensor, latest: Tensor, cosine: Tensor | None = None) -> None:
        """The change and its causes of the last steps, the worst that was left, and what was left of the last step."""
        found = self._need_steps()
        grown = (worst > found.worst) | (worst.isnan() & ~found.worst.isnan())  # NaN must not pass; the first is told
        step = torch.where(grown, self.steps, found.worst_step)
        self._found = _Found(found.start, torch.maximum(found.worst, worst), step, latest, cosine)
        self._block = sums if self._block is None else self._block + sums
        if self.every and self.steps % self.every == 0:
            self._entries.append((self.steps, self._block, cosine))
            self._block = None

    def _notice(self, ratio: Tensor) -> bool:
        """Note the first step that leaves more than rounding."""
        largest, entry = ratio.max(0)
        if self._first is not None or float(largest) <= self.tolerance:
            return False
        if (not_a_number := ratio.isnan()).any():
            entry = not_a_number.int().argmax()
        self._first = _Breach(self.steps, int(entry), float(largest))
        return True

    def _need_steps(self) -> _Found:
        if isinstance(self._follower, OptimizerSteps):
            self._follower.finish()
        if self._found is None:
            raise ValueError("nothing is booked yet; run optimizer.step(), or descend with record=ledger.record")
        return self._found


@dataclass(frozen=True)
class _Breach:
    """The first step that left more than rounding: which, in which entry of all laws, and how much."""

    step: int
    entry: int
    size: float


@dataclass(frozen=True)
class _Found:
    """What a ledger has seen so far, entry by entry of all laws.

    Attributes:
        start: the charges before the first step.
        worst, worst_step: the largest relative residual, and its step.
        latest, cosine: the last step's residual, and its gradient's cosine with the generators.
    """

    start: Tensor
    worst: Tensor
    worst_step: Tensor
    latest: Tensor
    cosine: Tensor | None


def _short(law: Law) -> str:
    if len(law.shape) == 1:
        return f"{law.total.expression} (sum of {len(law)})"
    return law.expression + (" (norm)" if law.shape else "")


def _laws(laws) -> tuple[Law, ...]:
    if not isinstance(laws, Law | Iterable) or isinstance(laws, str | bytes | Tensor | np.ndarray):
        raise TypeError(f"laws must be a Law such as homogeneous_law(f, 1), or several, got {described(laws)}")
    laws = (laws,) if isinstance(laws, Law) else tuple(laws)
    if not laws:
        raise ValueError(
            "a ledger needs at least one law, got none; homogeneous_laws(f) finds those of pairs of nn.Linear with "
            "ReLU, leaky ReLU, powers or Swish between them, and tanh, GELU and convolutions have none of these"
        )
    for law in laws:
        if not isinstance(law, Law):
            raise TypeError(f"laws must be Laws such as homogeneous_law(f, 1), got {type(law).__name__}")
    if len({law.size for law in laws}) > 1:
        raise ValueError("the laws belong to networks of different sizes; make them from one flat_loss")
    return laws
