"""What is measured at a step, and how the sums become figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.watch.cut_sums import CutSums
from nlcompanion.monitoring.watch.cuts import Cut, Cuts, axis_of
from nlcompanion.monitoring.watch.device_rows import plain
from nlcompanion.monitoring.watch.figures import Figures
from nlcompanion.monitoring.watch.law_sums import LawFigures, LawSums, TensorLaws, cuts_of, is_of_slices
from nlcompanion.monitoring.watch.row_sums import KINDS, RowSums, Sums
from nlcompanion.monitoring.watch.sample import Sample
from nlcompanion.monitoring.watch.settings import Settings
from nlcompanion.monitoring.watch.tensors import Tensors


@dataclass(frozen=True)
class Taken:
    """What is known of a measured step while its sums are on their way.

    Attributes:
        layout: of the sums.
        step: its number.
        settings: of the tensors.
        stepped: the optimizers that took part.
        rescaled: whether a gradient scaler takes part, which may skip the step.
        judged: whether laws were measured too.
    """

    layout: Layout
    step: int
    settings: Settings
    stepped: frozenset[int]
    rescaled: bool
    judged: bool


class Layout:
    """The measurement of some tensors and laws.

    Args:
        tensors: that are watched.
        optimizers: that move them.
        laws: in the names of the tensors.
        every_axis: whether to sum along the first axes of every tensor, as the search for laws wants.
    """

    def __init__(
        self, tensors: Tensors, optimizers: Sequence[Optimizer], laws: Collection[Law] = (), *, every_axis: bool = False
    ):
        self.tensors, self.parameters = tensors, tensors.parameters
        of_slices = tuple(law for law in laws if is_of_slices(law))
        of_tensors = tuple(law for law in laws if not is_of_slices(law))
        self.laws = (*of_slices, *of_tensors)
        cuts = cuts_of(of_slices)
        if every_axis:
            shapes = {name: plain(p).shape for name, p in self.parameters.items()}
            cuts += [(name, axis_of(tuple(s), k)) for name, s in shapes.items() for k in range(min(len(s), 2))]
        self.cuts = Cuts(cuts)
        self.row_sums = [
            RowSums({name: self.parameters[name] for name in tensors.of(k)}, optimizer) if tensors.of(k) else None
            for k, optimizer in enumerate(optimizers)
        ]
        self._cut_sums = CutSums(self.parameters, self.cuts)
        self._law_sums = LawSums(of_slices, self.cuts)
        self._tensor_laws = TensorLaws(of_tensors, self.parameters) if of_tensors else None
        self._of_tensors: Tensor | None = None
        self.places = list(self._law_sums.places)
        if self._tensor_laws is not None:
            after = self._law_sums.size
            self.places += [slice(p.start + after, p.stop + after) for p in self._tensor_laws.places]
        self.counts = np.array([p.numel() for p in self.parameters.values()], dtype=float)
        self._order, self._starts = self._places_of_rows()
        self._device = next(iter(self.parameters.values())).device
        self._wide = torch.float32 if self._device.type == "mps" else torch.float64

    def _places_of_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the sums of each row are among those that :meth:`take` returns, in the order of the tensors."""
        where: dict[str, np.ndarray] = {}
        first = 0
        for names, counts in (block for sums in self.row_sums if sums is not None for block in sums.blocks):
            rows, at = sum(counts), first
            for name, count in zip(names, counts, strict=True):
                where[name] = np.stack([np.arange(at, at + count) + kind * rows for kind in range(KINDS)])
                at += count
            first += KINDS * rows
        order = np.concatenate([where[name] for name in self.parameters], axis=1)
        counts = [where[name].shape[1] for name in self.parameters]
        return order, np.cumsum([0, *counts[:-1]])

    # --- on the device ------------------------------------------------------------------------------------------------

    def begin(self, k: int, scale: Tensor | None, *, judged: bool) -> None:
        """Before the step of an optimizer; of a judged one more is measured."""
        sums = self.row_sums[k]
        if sums is None:
            return
        sums.begin(scale, exact=judged)
        if judged:
            self._cut_sums.measure(sums.names, scale)
            if self._tensor_laws is not None:
                self._of_tensors = self._tensor_laws.measure(scale)

    def end(self, k: int) -> None:
        """After it."""
        sums = self.row_sums[k]
        if sums is not None:
            sums.end()

    def take(self, *, judged: bool) -> Sums:
        """All sums of the step, on the device of the tensors."""
        parts = [part for sums in self.row_sums if sums is not None for part in sums.take()]
        if judged:
            parts += self._cut_sums.take()
            if self._of_tensors is not None:
                parts.append(self._of_tensors)
        self._of_tensors = None
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts)
        return torch.cat([torch.as_tensor(part).to(self._device, self._wide) for part in parts])

    def step_of(self, name: str) -> Tensor:
        sums = self.row_sums[self.tensors.owners[name]]
        assert sums is not None
        return sums.step_of(name)

    # --- on the CPU ---------------------------------------------------------------------------------------------------

    def figures(self, values: Sequence[np.ndarray], settings: list[Settings]) -> Figures:
        """Of several samples."""
        return Figures(np.stack([one[self._order] for one in values]), self._starts, settings)

    def sample(self, values: np.ndarray, taken: Taken, figures: Figures, k: int) -> Sample:
        """The judged sample ``k`` of some figures."""
        step_norms = figures.step_norms[k]
        return Sample(
            step=taken.step,
            names=tuple(self.parameters),
            settings=taken.settings,
            stepped=frozenset(name for name, owner in self.tensors.owners.items() if owner in taken.stepped),
            counts=self.counts,
            squares=figures.squares[k],
            gradient_norms=figures.gradient_norms[k],
            step_norms=step_norms,
            updates=np.nan_to_num(figures.updates[k] * figures.lrs[k]),
            laws=self._laws(values[self._order.size :]),
            skipped=taken.rescaled and not step_norms.any(),
        )

    def _laws(self, values: np.ndarray) -> LawFigures:
        size = 3 * self.cuts.size
        laws = self._law_sums.figures(*values[:size].reshape(3, -1))
        return laws if self._tensor_laws is None else laws.joined(self._tensor_laws.figures(values[size:]))

    def along_axes(self, values: np.ndarray) -> dict[tuple[str, Cut], tuple[np.ndarray, np.ndarray]]:
        """Of every cut ``<g, w>`` of its slices, and ``|g| |w|``."""
        ww, gg, gw = values[self._order.size :][: 3 * self.cuts.size].reshape(3, -1)
        return {key: (gw[at], np.sqrt(gg[at] * ww[at])) for key, at in self.cuts.place.items()}


def shape_of(p: Tensor) -> tuple[int, ...]:
    return tuple(torch.view_as_real(p.detach()).shape if p.is_complex() else p.shape)
