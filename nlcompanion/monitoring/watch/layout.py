"""What is measured at a step, and how the vector of its sums becomes a sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.watch.cuts import Cut, Cuts, axis_of
from nlcompanion.monitoring.watch.law_sums import LawFigures, LawSums, TensorLaws, cuts_of, is_of_slices
from nlcompanion.monitoring.watch.measurement import Measurement
from nlcompanion.monitoring.watch.sample import Sample, Setting


class Layout:
    """The measurement of some tensors and laws.

    Args:
        parameters: the tensors, by name.
        laws: in the names of the tensors.
        every_axis: whether to sum along every axis of every tensor, as the search for laws wants.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        laws: Collection[Law] = (),
        *,
        every_axis: bool = False,
    ):
        self.parameters = dict(parameters)
        of_slices = tuple(law for law in laws if is_of_slices(law))
        of_tensors = tuple(law for law in laws if not is_of_slices(law))
        self.laws = (*of_slices, *of_tensors)
        shapes = {name: shape_of(p) for name, p in self.parameters.items()}
        more = cuts_of(of_slices)
        if every_axis:
            more += [(name, axis_of(shape, k)) for name, shape in shapes.items() for k in range(min(len(shape), 2))]
        self.cuts = Cuts(shapes, more)
        self.measurement = Measurement(self.parameters, self.cuts)
        self._sums = LawSums(of_slices, self.cuts)
        self._tensor_laws: TensorLaws | None = None
        if of_tensors:
            names = {term.name for law in of_tensors for term in law.terms}
            self._tensor_laws = TensorLaws(of_tensors, {name: self.parameters[name] for name in names})
        self._of_tensors: Tensor | None = None
        self.places = [*self._sums.places]
        if self._tensor_laws is not None:
            after = self._sums.size
            self.places += [slice(p.start + after, p.stop + after) for p in self._tensor_laws.places]
        self.counts = np.array([p.numel() for p in self.parameters.values()], dtype=float)
        counts = [self.cuts.rows[name].stop - self.cuts.rows[name].start for name in self.parameters]
        ends = np.cumsum([0, *counts])
        self._rows = tuple(slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True))
        places = [np.arange(self.cuts.rows[name].start, self.cuts.rows[name].stop) for name in self.parameters]
        self._at_rows = np.concatenate(places) if places else np.zeros(0, dtype=int)

    def begin(self, names: Collection[str], scale: Tensor | None) -> None:
        self.measurement.begin(names, scale)
        if self._tensor_laws is not None:
            self._of_tensors = self._tensor_laws.measure(scale)

    def vector(self) -> tuple[Tensor, set[str]]:
        sums, stepped = self.measurement.vector()
        if self._of_tensors is not None:
            sums = torch.cat([sums, self._of_tensors.to(sums)])
            self._of_tensors = None
        return sums, stepped

    def sample(
        self, values: np.ndarray, step: int, settings: dict[str, Setting], stepped: Collection[str], rescaled: bool
    ) -> Sample:
        size, rows = self.cuts.size, len(self._at_rows)
        ww, gg, gw = values[: 3 * size].reshape(3, size)
        ee, ew = values[3 * size : 3 * size + 2 * rows].reshape(2, rows)
        with np.errstate(all="ignore"):
            laws = self._sums.figures(ww, gg, gw)
            if self._tensor_laws is not None:
                laws = _joined(laws, self._tensor_laws.figures(values[3 * size + 2 * rows :]))
        at = self._at_rows
        return Sample(
            step=step,
            names=tuple(self.parameters),
            settings=settings,
            stepped=frozenset(stepped),
            counts=self.counts,
            rows=self._rows,
            weight=ww[at],
            step_=ee,
            gradient=gg[at],
            along_gradient=gw[at],
            along_step=-(ew + ee),
            laws=laws,
            skipped=rescaled and not ee.any(),
        )

    def along_axes(self, values: np.ndarray) -> dict[tuple[str, Cut], tuple[np.ndarray, np.ndarray]]:
        """Of every cut ``<g, w>`` of its slices, and ``|g| |w|``."""
        size = self.cuts.size
        ww, gg, gw = values[: 3 * size].reshape(3, size)
        return {key: (gw[at], np.sqrt(gg[at] * ww[at])) for key, at in self.cuts.place.items()}


def shape_of(p: Tensor) -> tuple[int, ...]:
    return tuple(torch.view_as_real(p.detach()).shape if p.is_complex() else p.shape)


def _joined(one: LawFigures, other: LawFigures) -> LawFigures:
    names = ("form", "gradient", "generator", "charge")
    return LawFigures(**{name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names})
