"""A monitor: two lines in anybody's loop; public in ``nlcompanion``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion._arguments import choice, counted, described, integer
from nlcompanion.laws.auditing.report import Audit
from nlcompanion.laws.law import Law
from nlcompanion.monitoring import monitor_arguments, monitor_plot, monitor_state, monitor_text, tensor_changes
from nlcompanion.monitoring.alerts import Alert, replica_ranks
from nlcompanion.monitoring.exports import Target, rows_of_laws, rows_of_tensors
from nlcompanion.monitoring.inspection import Inspection
from nlcompanion.monitoring.norm_forecasts import NormForecasts, norm_forecasts
from nlcompanion.monitoring.step_hooks import listen
from nlcompanion.monitoring.watch.record import Entry, Record
from nlcompanion.monitoring.watch.run_laws import given_laws, laws_argument
from nlcompanion.monitoring.watch.settings import Settings
from nlcompanion.monitoring.watch.steps import Batch, WatchedSteps
from nlcompanion.monitoring.watch.tensors import Tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGGER = logging.getLogger("nlcompanion.monitor")


class _Hooks:
    """What the steps' hooks call: apart from the monitor, of which nobody else calls it."""

    def __init__(self, monitor: Monitor):
        self._monitor = monitor

    def before(self, k: int) -> None:
        self._monitor._before(k)

    def evaluated_again(self, k: int) -> None:
        """A closure was called again within a step (LBFGS); figures are those of the first gradient."""

    def after(self, k: int) -> None:
        self._monitor._after(k)


class Monitor:
    r"""Watches a training run: records norms, turns and effective rates, and says when the run leaves its own laws.

    ::

        monitor = Monitor(model, optimizer)
        ...                         # the training loop, unchanged
        print(monitor.report())
        monitor.alerts, monitor.records(), monitor.forecast(300), monitor.plot()

    It hooks into the optimizers and measures every ``every``-th step (and the first four) on the device; no step waits
    for it. For each tensor and each of its rows or filters it takes :math:`|W|^2, |g|^2, |d|^2, \langle g, W\rangle,
    \langle d, W\rangle` of weight, gradient and step, from which all figures follow:

    =======================  ==========================================================================================
    ``norm``                 :math:`|W|`, and least, median and largest of its rows
    ``angle``                the turn of a row in a step, in radians, root mean square over the rows
    ``update``               :math:`|u|` with :math:`W' = (1-\eta\lambda)W - \eta u`; ``alignment`` is its cosine with W
    ``gradient``             :math:`|g|`, and ``gradient_per_weight`` :math:`|g|/|W|`
    ``step_norm``            :math:`|d|`, of the step itself
    ``effective_lr``         the turn per gradient at unit length, :math:`\mathrm{angle}/(|W||g|)` row by row:
                             :math:`\eta/|W|^2` of plain SGD, and what takes its place under any other optimiser
    =======================  ==========================================================================================

    The alerts are tests, each of one law, at what rounding and noise allow of it:

    ===================  ==============================================================================================
    ``broken gradient``  :math:`\langle g, A\theta\rangle = 0` for each symmetry, at any batch under any optimizer
    ``frozen``           what has a gradient and a rate moves
    ``decay``            gains of normalisations balance the layer that reads them, where decay acts on the same product
    ``replicas``         processes that start equal and step on one gradient stay equal
    ``schedule``         one schedule moves the rates of all groups
    ``dead direction``   what the loss does not depend on stays where it is
    ``not finite``       gradients and steps are numbers
    ``replaced``         the model computes with the tensors that the optimizer moves
    ===================  ==============================================================================================

    An alert is raised once, kept in ``alerts``, logged as a warning of ``nlcompanion.monitor``, and given to
    ``on_alert``. Without ``laws`` those of the run are found in its first three gradients: layers joined by ReLU or
    another homogeneous activation, gains and their readers. What else happened on the way (groups that came or went,
    clipping, half precision, steps that were left out) is in ``notes``. Should the monitor itself fail, it stops,
    says so, and leaves the loop alone.

    Args:
        model: that is trained; wrapped (``torch.compile``, ``DataParallel``, ``DistributedDataParallel``) or not.
        optimizer: any ``torch.optim.Optimizer`` or wrapper around one, or several in a list.
        laws: an :func:`audit`, or laws of a part of this model; None finds them.
        every: the stride, in steps. Laws are looked at, and alerts judged, at least 20 steps apart.
        keep: how many samples the record holds; when it is full every second one goes. None keeps all.
        replicas: whether weights are compared across processes of ``torch.distributed``; None for models in
            ``DistributedDataParallel``.
        ignore: kinds of alerts that are not wanted.
        on_alert: a function of an :class:`Alert`.

    Attributes:
        optimizers: those that are heard, without wrappers.
        notes: what was recognised beside alerts, in sentences.
        stopped: why the monitor gave up, or None.

    Raises:
        ValueError: an optimizer that holds none of the model's parameters; weights that are split over machines; laws
            of another model.
        TypeError: arguments of other kinds.

    Source: the laws of gradients are GU Section 4, the effective rate is TK Section 4; the tests are this book's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import Monitor
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> monitor = Monitor(model, optimizer)
        >>> for step in range(100):
        ...     x = torch.randn(32, 4)
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        ...     if step >= 50:
        ...         model[2].weight.grad *= 1.01                                     # a fault in one tensor
        ...     optimizer.step()
        >>> [(alert.kind, alert.tensors, alert.since) for alert in monitor.alerts]
        [('broken gradient', ('2.weight',), 60)]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        laws: Audit | Law | Sequence[Law] | None = None,
        *,
        every: int = 20,
        keep: int | None = 512,
        replicas: bool | None = None,
        ignore: Sequence[str] = (),
        on_alert: Callable[[Alert], Any] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be the torch.nn.Module that is trained, got {described(model)}")
        self.every = integer("every", every, 1, 10**9)
        self._on_alert = monitor_arguments.listener(on_alert)
        given = laws_argument(laws)
        kept = None if keep is None else integer("keep", keep, 16, 10**9)
        optimizers = monitor_arguments.optimizers_of(optimizer)
        self.notes: list[str] = []
        self.stopped: str | None = None
        self._alerts: list[Alert] = []
        self._targets: list[Target] = []
        self._watch = WatchedSteps(model, optimizers, self.every, self._receive, self._changed, self._gather)
        for note in tensor_changes.at_the_start(model, optimizers, self._watch.tensors):
            self._say(note)
        if given is not None:
            given = given_laws(given, model, self._watch.tensors, len(optimizers), self._say)
        self._record = Record(self.every, kept)
        self._last_settings = Settings()
        self._inspection = Inspection(
            model,
            self._watch,
            given,
            replica_ranks(model, monitor_arguments.flag_or_none("replicas", replicas)),
            monitor_arguments.kinds(ignore),
            self._tell,
            self._say,
        )
        self._ignored = set(monitor_arguments.kinds(ignore))
        self._skips: Tensor | int = 0
        self.optimizers = optimizers
        self._handles = [*listen(optimizers, _Hooks(self)), *self._inspection.handles]

    # --- what the hooks tell ----------------------------------------------------------------------------------------

    def _before(self, k: int) -> None:
        """An optimizer is about to step."""
        try:
            skips = getattr(self.optimizers[k], "found_inf", None)
            if isinstance(skips, Tensor):
                self._skips = self._skips + skips.detach()
            self._watch.before(k)
        except Exception as error:
            self._stop(error)

    def _after(self, k: int) -> None:
        """An optimizer has stepped."""
        try:
            self._watch.after(k)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Give up rather than disturb the loop."""
        self.stopped = f"stopped at step {self._watch.steps + 1}: {type(error).__name__}: {error}"
        LOGGER.warning("the monitor %s", self.stopped)
        self.close()

    def _receive(self, batch: Batch) -> None:
        """The measured steps up to one that is judged."""
        layout = batch[0][1].layout
        laws = tuple(law.statement for law in layout.laws)
        settings = [taken.settings for _, taken in batch]
        with np.errstate(all="ignore"):  # what is not finite is told by an alert
            figures = layout.figures([values for values, _ in batch], settings)
            table = figures.columns()
        for k, (values, taken) in enumerate(batch):
            of_laws = np.zeros((0, 2))
            if taken.judged:
                sample = layout.sample(values, taken, figures, k)
                of_laws = self._inspection.look(sample, layout, values)
            if taken.rescaled and not figures.step_norms[k].any():
                continue  # skipped
            names = tuple(layout.parameters)
            entry = Entry(taken.step, names, table[k], laws if len(of_laws) else (), of_laws)
            self._record.add(entry)
            for target in self._targets:
                target.write(entry)
        self._last_settings = settings[-1]

    def _gather(self) -> None:
        self._inspection.gather()

    def _changed(self, before: Tensors, now: Tensors) -> None:
        step = self._watch.steps + 1
        for note in tensor_changes.notes(before, now, step):
            self._say(note)
        alert = tensor_changes.replaced(before, now, step)
        if alert is not None:
            self._tell(alert)
        self._inspection.changed(before, now)

    def _tell(self, alert: Alert) -> None:
        if alert.kind in self._ignored:
            return
        self._alerts.append(alert)
        LOGGER.warning("%s", alert)
        for target in self._targets:
            target.alert(alert)
        if self._on_alert is not None:
            try:
                self._on_alert(alert)
            except Exception as error:  # of the user's function
                self._say(f"on_alert failed at step {alert.seen}: {type(error).__name__}: {error}")

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    # --- what it found ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps that the optimizers have taken since the monitor was made."""
        return self._watch.steps

    @property
    def skipped(self) -> int:
        """Steps that a fused optimizer left out because a ``GradScaler`` found an overflow.

        An optimizer that is not fused is not called after an overflow: that is no step.
        """
        return int(self._skips)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What left its law so far, in order."""
        self._settle()
        return tuple(self._alerts)

    @property
    def laws(self) -> tuple[Law, ...]:
        """The laws of gradients that are watched: those given, or those found."""
        self._settle()
        return self._inspection.laws

    def records(self, of: str = "tensors") -> list[dict[str, Any]]:
        """What was recorded, as ``pandas.DataFrame`` takes it: a dict for each step and tensor, or step and law.

        Args:
            of: ``"tensors"`` or ``"laws"``.

        Raises:
            ValueError: for another word.
        """
        choice("of", of, "tensors", "laws")
        self._settle()
        entries = self._record.all_entries()
        return rows_of_laws(entries) if of == "laws" else rows_of_tensors(entries)

    def report(self) -> str:
        """Alerts, notes, and the latest figures, in tables."""
        self._settle()
        names = self._inspection.optimizer
        title = f"Monitor: {counted(self.steps, 'step')} of {names}, watched every {self.every}"
        if self.skipped:
            title += f"; {self.skipped} left out after an overflow"
        if self.stopped:
            title += f"; {self.stopped}"
        return monitor_text.report(title, self._alerts, self.notes, self._record.latest)

    __str__ = report

    def __repr__(self) -> str:
        steps, alerts = counted(self.steps, "step"), counted(len(self._alerts), "alert")
        return f"Monitor({steps} of {self._inspection.optimizer}, {alerts})"

    def forecast(self, horizon: int, schedule: Callable[[int], float] | Sequence[float] | None = None) -> NormForecasts:
        """Forecast each tensor's norm and effective rate, from what is recorded up to now.

        Args:
            horizon: steps ahead.
            schedule: the rates ahead: a function of the step, or a sequence that begins with the next rate; None
                holds the present one.

        Returns:
            A tuple of :class:`NormForecast`, which prints as a table.

        Raises:
            ValueError: if nothing is recorded yet, or the schedule does not reach the horizon.

        Source: see :func:`nlcompanion.forecast`.
        """
        integer("horizon", horizon, 1, 10**6)
        self._settle()
        return norm_forecasts(
            self._record.all_entries(),
            self._last_settings,
            self.optimizers,
            self._inspection.free,
            horizon,
            schedule,
        )

    def plot(self) -> Figure:
        """Norms, turns, gradients and laws over the run, with the alerts; needs matplotlib."""
        self._settle()
        return monitor_plot.plot(self._record.all_entries(), self._alerts)

    def log_to(self, target: Any) -> None:
        """Hand each new record on as it comes.

        Args:
            target: a TensorBoard ``SummaryWriter``, a run of wandb (``log(dict, step=...)``), or ``f(dict, step)``.

        Raises:
            TypeError: for anything else.
        """
        self._targets.append(Target(target))

    # --- its end, and its state -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self.stopped is None:
            try:
                self._watch.settle()
            except Exception as error:
                self._stop(error)

    def close(self) -> None:
        """Stop listening; what was found stays. ``with Monitor(...)`` does it at the end."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self._settle()
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """All that it has recorded and remembers, as numbers, texts and tensors, for ``torch.save``."""
        self._settle()
        return monitor_state.state_of(
            self._watch, self._record, self._inspection, self._alerts, self.notes, self.skipped
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another monitor of this run was. A change of the optimizer or of the tensors is noted.

        Raises:
            ValueError: if this is no state of a monitor.
        """
        found = monitor_state.restored(state, self._watch, self._record, self._inspection, self._say)
        self._alerts = [*found.alerts, *self._alerts]
        self.notes = list(dict.fromkeys([*found.notes, *self.notes]))
        self._skips = self._skips + found.skipped
