"""The steps of ``torch.optim`` optimisers, as the ledger follows them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nlcompanion.laws.under_optimizers import StepRates
from nlcompanion.monitoring.diagnosis import diagnosis
from nlcompanion.monitoring.evidence import evidence
from nlcompanion.monitoring.find_parameters import find_parameters
from nlcompanion.monitoring.precision import GradientPrecision, telling
from nlcompanion.monitoring.scaled_gradients import cleared_by
from nlcompanion.monitoring.sources import SourceReader
from nlcompanion.monitoring.stacked_forms import Step, Tensors
from nlcompanion.monitoring.step_causes import causes_of
from nlcompanion.monitoring.step_hooks import innermost, listen, steps_as_torch_does
from nlcompanion.monitoring.step_judge import StepJudge
from nlcompanion.monitoring.step_settings import Settings, StepSettings
from nlcompanion.monitoring.step_states import Ahead, Moving, Rest, UsedGradient, Versions, Written
from nlcompanion.monitoring.usual_step import UsualStep

if TYPE_CHECKING:
    from nlcompanion.monitoring.ledger import Ledger

_AFRESH = 256  # steps after which squares are summed anew, lest the rounding of their changes add up


class OptimizerSteps:
    """The steps of one ``torch.optim.Optimizer``, or of several that share a model, seen through their hooks.

    Before a step :meth:`_look_ahead` gathers what the step will overwrite; after it :meth:`_book` compares. Between
    the two and from step to step there is an :class:`Ahead` and a :class:`Rest`, and nothing else but a copy of the
    weights. With several optimizers a step is one of each of them; one that steps a second time begins the next, and so
    does a backward pass after one of them has stepped.
    """

    def __init__(self, ledger: Ledger, model: nn.Module | None, optimizer: Optimizer | Iterable[Optimizer] | None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be the torch.nn.Module that is trained, got {type(model).__name__}")
        self.ledger, self.forms = ledger, ledger._forms
        given = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        found = list(dict.fromkeys(innermost(one) for one in given))
        held = {id(p) for one, _ in found for group in one.param_groups for p in group["params"]}
        self.parameters = find_parameters(model, self.forms.terms, held)
        # optimizers that move none of the laws' parameters may step as they like
        needed = [(one, wrapped) for one, wrapped in found if self._of(one)]
        self.optimizers = [one for one, _ in needed]
        self._trusts_versions = not any(wrapped for _, wrapped in needed)  # wrappers like to write through .data
        self._owners = {name: k for k, one in enumerate(self.optimizers) for name in self._of(one)}
        self._refuse_what_nobody_moves()
        self.name = " and ".join(dict.fromkeys(type(one).__name__ for one in self.optimizers))
        first = next(iter(self.parameters.values()))
        self.dtype = first.dtype
        self.forms.to(first.device)
        if self.forms.has_shifts:
            with torch.no_grad():
                self.forms.floor = 1e-3 * max(float(p.abs().mean()) for p in self.parameters.values())
        self._of_sgd = {name for name in self.parameters if isinstance(self._owner(name), torch.optim.SGD)}
        chosen = torch.tensor([name in self._of_sgd for name in self.parameters], device=first.device)
        self._exact = self.forms.all_of(chosen)  # laws whose steps have a formula
        self.is_exact = bool(self._exact.all())
        self._is_mixed = bool(self._exact.any()) and not self.is_exact
        self._cannot_skip = all(map(steps_as_torch_does, self.optimizers))
        self._never = torch.tensor(False, device=first.device)
        self._before: Tensors = {name: torch.empty_like(p) for name, p in self.parameters.items()}
        self._rest: Rest | None = None
        self._ahead: Ahead | None = None
        self._outside: Written | None = None  # before a step that failed
        self._faded = 0.0  # logarithm of how far decay may have shrunk the squares since they were summed
        self.precision = GradientPrecision(telling(self.parameters, dict(model.named_parameters())))
        self._judge = StepJudge(self.forms, self.dtype, self._exact, self.precision)
        self._reader: SourceReader | None = None
        if self.forms.has_sources:
            sources = [source for law in self.forms.laws for source in law.sources]
            self._reader = SourceReader(model, sources, first)
        self._usual = UsualStep.of(self.forms, self.parameters, self._before)
        self._unsettled = False  # whether usual steps were not yet handed to the ledger
        self.settings = StepSettings(self.optimizers, self.parameters, self._owners)
        self._all = list(self.parameters.values())
        self._addresses = [p.data_ptr() for p in self._all]

    @property
    def judged(self) -> str:
        """Heads the column of what is judged."""
        if self._is_mixed:
            return "judged"
        return "relative" if self.is_exact else "gradients"

    def judges_gradients(self, entry: int) -> bool:
        """Whether an entry's figure is its gradient's and not its step's."""
        return not self._exact[entry]

    def attach(self) -> list:
        read = [] if self._reader is None else self._reader.handles
        return [*listen(self.optimizers, self), *self.precision.handles, *read]

    def _of(self, optimizer: Optimizer) -> list[str]:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [name for name, p in self.parameters.items() if id(p) in held]

    def _owner(self, name: str) -> Optimizer:
        return self.optimizers[self._owners[name]]

    def _refuse_what_nobody_moves(self) -> None:
        missing = [name for name in self.parameters if name not in self._owners]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among the optimizer's parameters, so "
                "one side of the balance cannot move and no law holds; give the optimizer model.parameters(), or the "
                "ledger all of several optimizers: Ledger(laws, model, [muon, adamw])"
            )

    # --- before a step --------------------------------------------------------------------------------------------

    def before(self, k: int) -> None:
        if self._ahead is not None and (k in self._ahead.begun or self._has_new_gradients(self._ahead)):
            self._end_early(self._ahead)
        if self._ahead is None:
            self._ahead = self._look_ahead()
        ahead, optimizer = self._ahead, self.optimizers[k]
        ahead.begun.add(k)
        ahead.rescaled |= getattr(optimizer, "found_inf", None) is not None
        if ahead.reads_gradients:
            ahead.gradients[k] = self._of_gradients(k)

    def evaluated_again(self, k: int) -> None:
        if self._ahead is not None and self._ahead.reads_gradients:
            self._ahead.gradients[k] = self._of_gradients(k)

    def after(self, k: int) -> None:
        ahead = self._ahead
        if ahead is not None:
            ahead.stepped.add(k)
            if len(ahead.stepped) == len(self.optimizers):
                self._book(ahead)
            else:
                ahead.used += self._used_gradient(k)

    def _used_gradient(self, k: int) -> list[UsedGradient]:
        for name, p in self.parameters.items():
            if self._owners[name] == k and p.grad is not None:
                return [UsedGradient(p, weakref.ref(p.grad), p.grad._version)]
        return []

    def _has_new_gradients(self, ahead: Ahead) -> bool:
        """Whether the others sit this step out: the next one has begun, as a scaler does that skips one of several."""
        return any(gradient.is_followed_by_another() for gradient in ahead.used)

    def _end_early(self, ahead: Ahead) -> None:
        """One of the optimizers begins anew before all have stepped: the others sit this step out, or all failed."""
        if ahead.stepped:
            self._book(ahead)
        else:
            self._ahead, self._rest, self._outside = None, ahead.rest, ahead.outside

    def _look_ahead(self) -> Ahead:
        buffers = self.settings.buffers()
        settings = self.settings.read(buffers, self.ledger.steps + 1)
        addresses = [p.data_ptr() for p in self._all]
        if addresses != self._addresses:
            self._check_kind()
            self._move_to(addresses)
        rest, outside = self._still_at_rest(buffers)
        outside, self._outside = _together(self._outside, outside), None
        memory = None
        if settings.remembers:
            memory = _of_last_step(rest, settings)
            memory = memory or (self._of_buffers(buffers), dict.fromkeys(self.parameters, 1.0))
        reads = not self.is_exact or len(self.optimizers) > 1
        if settings.rate is None:
            reads = reads or self.forms.differ({name: rate.gradient for name, rate in settings.rates.items()})
        sources = None if self._reader is None else self.forms.sources(self._reader.take())
        return Ahead(settings, rest, outside, memory, reads, sources, buffers)

    def _move_to(self, addresses: list[int]) -> None:
        """The parameters' storage was replaced."""
        self.settle()
        self._addresses, self._usual = addresses, UsualStep.of(self.forms, self.parameters, self._before)

    def _check_kind(self) -> None:
        for name, p in self.parameters.items():
            old = self._before[name]
            if p.dtype != old.dtype or p.device != old.device:
                raise ValueError(
                    f"{name} was {old.dtype} on {old.device} when the ledger was made and is {p.dtype} on {p.device} "
                    "now, so its steps cannot be booked to the stated precision; convert or move the model first, "
                    "close() this ledger and make a new one"
                )

    def _still_at_rest(self, buffers: list[Tensor | None]) -> tuple[Rest, Written | None]:
        """The weights as they are now, and what was written to them since the last step."""
        rest = self._rest
        if rest is None:
            return self._rest_afresh(), None
        weights, memories = self._versions(buffers)
        if weights != rest.weights or not self._trusts_versions:
            return self._moved_between_steps(rest)
        if memories != rest.buffers:
            rest = replace(rest, last=None)
        return rest, None

    @torch.no_grad()
    def _moved_between_steps(self, rest: Rest) -> tuple[Rest, Written]:
        old = self._before
        scale = self.forms.scale(rest.squares, old)
        for name, p in self.parameters.items():
            torch.sub(p, old[name], out=old[name])
        twice, square = self.forms.form(self.forms.pairs((Step(old), self._weights()), (Step(old), Step(old))))
        return self._rest_afresh(), (2 * twice - square, scale)

    @torch.no_grad()
    def _of_gradients(self, k: int) -> tuple[Tensor, Tensor]:
        """Pairings of an optimizer's gradients with the weights, and squared lengths, as their scaler leaves them."""
        optimizer = self.optimizers[k]
        names = None if len(self.optimizers) == 1 else {name for name, owner in self._owners.items() if owner == k}
        gradients = self._gradients()
        weights = self._weights()
        (pairs,) = self.forms.pairs((Step(gradients), weights), names=names)
        lengths = torch.zeros(2, 0)
        if not self.is_exact:
            lengths = self.forms.squared_lengths(gradients, weights, names)
        scale = getattr(optimizer, "grad_scale", None)  # a fused kernel takes it off by itself
        if scale is not None:
            pairs, lengths[0] = pairs / scale, lengths[0] / scale**2
        return pairs, lengths

    # --- after it -------------------------------------------------------------------------------------------------

    def _book(self, ahead: Ahead) -> None:
        self._ahead = None
        usual, rate = self._usual, ahead.settings.rate
        if usual is None or rate is None or not self._is_usual(ahead):
            self.settle()
            self._book_in_full(ahead)
        else:
            self._book_as_usual(ahead, usual, rate)

    def _is_usual(self, ahead: Ahead) -> bool:
        """Whether a step is a single SGD's, of one setting for all, with nothing beside it."""
        memory = ahead.memory
        return (
            self.ledger.steps > 0
            and not ahead.reads_gradients
            and ahead.outside is None
            and not ahead.rescaled
            and not ahead.settings.is_idle
            and self._cannot_skip
            and self.precision.dtype is None
            and (memory is None or len(set(memory[1].values())) == 1)
        )

    def _book_as_usual(self, ahead: Ahead, usual: UsualStep, rate: StepRates) -> None:
        buffer, scale = None, 0.0
        if ahead.memory is not None:
            buffer, scales = ahead.memory
            scale = next(iter(scales.values()))
        self._unsettled = True
        largest = usual.book(ahead.rest.squares, buffer, scale * rate.buffer, rate.parameter)
        if self.ledger._count_step(largest):
            self.settle()
            if self.ledger._notice(torch.from_numpy(usual.ratio)):
                self.ledger._diagnosis = self._diagnose(ahead)
        self._rest = self._rest_after(ahead, None)

    def finish(self) -> None:
        """All that has moved so far belongs to a step, for whoever reads the books now."""
        if self._ahead is not None and self._ahead.stepped:
            self._book(self._ahead)
        self.settle()

    def settle(self) -> None:
        """Hand the ledger what usual steps have summed up."""
        if self._unsettled and self._usual is not None:
            self._unsettled = False
            self.ledger._add_up(*self._usual.take())

    @torch.no_grad()
    def _book_in_full(self, ahead: Ahead) -> None:
        if self.ledger.steps == 0:
            self._decide_tolerance()
        forms, old, squares = self.forms, self._before, ahead.rest.squares
        scale = forms.scale(squares, old)

        def step(name: str) -> None:
            old[name].sub_(self.parameters[name])  # minus the step

        moved = forms.pairs((Step(old), Step(old), step), (Step(old), self._weights()))
        step_scale = forms.scale(moved[0], old)
        square, product, charges = forms.form(torch.cat([moved, squares[None]]))
        change = -2 * product - square
        moving = self._who_moved(ahead, moved[0])
        along = self._along(ahead, moving)
        causes = {"finite_step": square, **causes_of(ahead, moving, charges, along, forms, self._exact)}
        if not self.is_exact:
            rest = -2 * (product + square) - sum(x for name, x in causes.items() if name in ("momentum", "decay"))
            causes["optimizer"] = torch.where(self._exact, 0.0, rest) if self._is_mixed else rest
        start = charges
        allowed = torch.maximum(scale, step_scale)  # a step may be longer than the weights
        if ahead.outside is not None:
            causes["outside"], earlier = ahead.outside
            change, start = change + causes["outside"], charges - causes["outside"]
            allowed = torch.maximum(allowed, earlier)  # rounding is that of the larger weights
        excess = (change - reduce(torch.add, causes.values())).abs()
        ratio, cosine = self._judge.judge(ahead, along, moving, excess, allowed, (scale * step_scale).sqrt())
        if self.ledger._enter(change, causes, start, ratio, cosine, moving.skipped):
            self.ledger._diagnosis = self._diagnose(ahead)
        self._rest = self._rest_after(ahead, moved)

    def _decide_tolerance(self) -> None:
        self.precision.decide()
        if self.precision.tolerance is not None:
            self.ledger.tolerance = self.precision.tolerance

    def _who_moved(self, ahead: Ahead, squared_step: Tensor) -> Moving:
        """What really moved: after an overflow fused kernels leave all alone, and other steps have reasons too."""
        alone = len(self.optimizers) == 1
        if alone and not ahead.rescaled and self._cannot_skip:
            return Moving()
        of_each = [
            (squared_step[self.forms.positions(self._of(one))] != 0).any() if k in ahead.stepped else self._never
            for k, one in enumerate(self.optimizers)
        ]
        by_parameter = torch.stack([of_each[owner] for owner in (self._owners[name] for name in self.parameters)])
        return Moving(
            by_parameter[self.forms.owner_of_pairs], self.forms.all_of(by_parameter), ~torch.stack(of_each).any()
        )

    def _along(self, ahead: Ahead, moving: Moving) -> Tensor | None:
        """Pairings of the gradients with the weights, of those that moved."""
        if not ahead.gradients:
            return None
        return moving.of(reduce(torch.add, [pairs for pairs, _ in ahead.gradients.values()]))

    # --- what is behind a residual --------------------------------------------------------------------------------

    @torch.no_grad()
    def _diagnose(self, ahead: Ahead) -> str:
        """Of the step just taken, whose negative ``_before`` holds."""
        for name, p in self.parameters.items():
            self.precision.look_at(name, p.grad)
        half = self.precision.latest() if self.precision.dtype is None else None
        moved = {
            name: evidence(
                p,
                -self._before[name],
                self._owner(name),
                ahead.settings.groups[name],
                self.settings.idle.get(name),
            )
            for name, p in self.parameters.items()
        }
        cause = diagnosis(
            self.ledger._broken_law,
            moved,
            optimizer=self.name,
            own_step=not self._cannot_skip,
            half=half,
            cleared=self._cleared(),
        )
        return cause.text

    def _cleared(self) -> frozenset[str]:
        """Parameters whose gradients keep another law in the step that was just booked."""
        latest = self.ledger._need_steps().latest
        figures = [float(latest[place].max()) for place in self.forms.places]
        return cleared_by(zip(self.ledger.laws, figures, strict=True), max(figures), self.ledger.tolerance)

    # --- the weights at rest --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _rest_afresh(self) -> Rest:
        torch._foreach_copy_(list(self._before.values()), list(self.parameters.values()))
        self._faded = 0.0
        weights, buffers = self._versions()
        return Rest(self.forms.pairs((self._before, self._before))[0], weights, buffers, None)

    def _rest_after(self, ahead: Ahead, moved: Tensor | None) -> Rest:
        """The squares from the last step's, or summed afresh every so often; ``moved`` is None after a usual step."""
        settings, usual = ahead.settings, self._usual
        self._faded += settings.fading
        if moved is None:
            assert usual is not None
            usual.go_on()
            product, squares = usual.last, usual.squares
        else:
            product, squares = moved[1], ahead.rest.squares - 2 * moved[1] - moved[0]
        if self.ledger.steps % _AFRESH == 0 or self._faded > 1 or self.forms.has_matrices:
            rest = self._rest_afresh()
        else:
            if moved is not None:
                torch._foreach_copy_(list(self._before.values()), list(self.parameters.values()))
            # a buffer that is there is written to in its place
            keeps = self._cannot_skip and all(buffer is not None for buffer in ahead.buffers)
            buffers = ahead.buffers if keeps else None
            weights, memories = self._versions(buffers)
            last = (product, settings.lr) if self._keeps_its_buffer(ahead) else None
            return Rest(squares, weights, memories, last)
        return replace(rest, last=(product, settings.lr)) if self._keeps_its_buffer(ahead) else rest

    def _keeps_its_buffer(self, ahead: Ahead) -> bool:
        """Whether the step was the buffer times the rate, for every parameter; not so if it may have been left out."""
        if not self.is_exact or not self._cannot_skip or ahead.rescaled or len(self.optimizers) > 1:
            return False
        return ahead.settings.keeps_buffer and not ahead.settings.is_idle

    def _versions(self, buffers: list[Tensor | None] | None = None) -> tuple[Versions, list[tuple[int, int] | None]]:
        buffers = self.settings.buffers() if buffers is None else buffers
        weights = [p._version for p in self._all]
        return weights, [None if b is None else (id(b), b._version) for b in buffers]

    @torch.no_grad()
    def _of_buffers(self, buffers: list[Tensor | None]) -> Tensor:
        old = self._before
        known = {name: old[name] if b is None else b for name, b in zip(self.parameters, buffers, strict=True)}
        return self.forms.pairs((Step(known), old))[0]

    def _weights(self) -> Tensors:
        return dict(self.parameters)

    def _gradients(self) -> Tensors:
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()}


def _together(one: Written | None, other: Written | None) -> Written | None:
    if one is None or other is None:
        return other if one is None else one
    return one[0] + other[0], torch.maximum(one[1], other[1])


def _of_last_step(rest: Rest, settings: Settings) -> tuple[Tensor, dict[str, float]] | None:
    """The buffer's pairings with the weights from the last step's: a heavy ball's step is -lr times its buffer.

    Spares a look at the buffers. Where the rate has grown much since, the last step's rounding would be enlarged.
    """
    if rest.last is None:
        return None
    pairs, lr = rest.last
    if lr is settings.lr:
        return pairs, settings.inverse_lr
    if any(lr[name] < now / 2 for name, now in settings.lr.items()):
        return None
    return pairs, {name: 1 / x if x else 0.0 for name, x in lr.items()}
