"""What a training run has measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nlcompanion._arguments import described, instance, integer, names, number_from, real_number
from nlcompanion._extras import needs
from nlcompanion.training.config import TrainConfig

with needs("training"):
    import attrs

RECORDS = ("step", "loss", "lr", "filter_norm", "gradient_norm", "angular_update")
LAYERWISE = RECORDS[3:]
EPOCHS = ("epoch", "train_loss", "test_accuracy", "test_accuracy_recalibrated")


@attrs.frozen(eq=False)
class Run:
    r"""A training run: its settings, what was recorded on the way, and how it ended. Made by :func:`train`.

    With R recorded steps, L convolutions and E evaluations, all as float64 CPU tensors:

    Attributes:
        config: the settings.
        status: ``"finished"``, or ``"diverged"`` if the loss ceased to be a finite number, or a weight did in an
            epoch's last step; what came before is kept.
        steps: how many steps had a finite loss.
        layers: names of the convolutions, L of them.
        records: ``step`` (R,), from 0; ``loss`` (R,) of the step's mini-batch; ``lr`` (R,), the filters' step size;
            ``filter_norm`` (R, L), :math:`|q_n|` of each layer's weight before the step; ``gradient_norm`` (R, L),
            :math:`|g_n|` there, of the loss alone, without decay; ``angular_update`` (R, L), the chord
            :math:`|\hat q_{n+1} - \hat q_n|`, which is the angle in radians where that is small.
        epochs: ``epoch`` (E,), the number of epochs done; ``train_loss`` (E,), its mean over the last of them;
            ``test_accuracy`` (E,), and ``test_accuracy_recalibrated`` (E,) with BatchNorm's running statistics replaced
            by those of the training images at the present weights.
        data: the two data sets, with checksums.
        duration: seconds of training, without the time in which it was interrupted.
        environment: versions, device and number of threads.
        model: the trained network; None for a run that was read from a file.

    Example:
        >>> import torch
        >>> from nlcompanion import TrainConfig
        >>> from nlcompanion.training.loop import train
        >>> run = train(TrainConfig(subset=64, batch_size=32, epochs=2))
        >>> again = Run.from_dict(run.to_dict())
        >>> again.status, again.steps, again.layers
        ('finished', 4, ('conv1', 'conv2', 'conv3'))
        >>> torch.equal(again.records["filter_norm"], run.records["filter_norm"])
        True
    """

    config: TrainConfig
    status: Literal["finished", "diverged"]
    steps: int
    layers: tuple[str, ...]
    records: dict[str, Tensor]
    epochs: dict[str, Tensor]
    data: dict[str, Any]
    duration: float
    environment: dict[str, Any]
    model: nn.Module | None = attrs.field(default=None, repr=False)

    def __repr__(self) -> str:
        accuracy = "" if math.isnan(self.accuracy) else f", accuracy {self.accuracy:.3f}"
        return f"Run({self.config.key}: {self.status} after {self.steps} steps{accuracy})"

    @property
    def accuracy(self) -> float:
        """Of the test set at the end; nan for a run that diverged."""
        return math.nan if self.status == "diverged" else self.epochs["test_accuracy"][-1].item()

    def to_dict(self) -> dict[str, Any]:
        """The run in JSON's types, for a results file; numbers that are not finite are None."""
        return {
            "config": self.config.to_dict(),
            "status": self.status,
            "steps": self.steps,
            "layers": list(self.layers),
            "records": {name: _plain(values.tolist()) for name, values in self.records.items()},
            "epochs": {name: _plain(values.tolist()) for name, values in self.epochs.items()},
            "data": self.data,
            "duration": self.duration,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """The run that :meth:`to_dict` stored, without its network.

        Raises:
            ValueError, TypeError: the content is no run's: an entry is missing or of another kind, or lengths do not
                agree.
        """
        entries = ("config", "status", "steps", "layers", "records", "epochs", "data", "duration", "environment")
        missing = [name for name in entries if not isinstance(content, Mapping) or name not in content]
        if missing:
            raise ValueError(f"the content of a run lacks {', '.join(missing)}; Run.to_dict makes all of it")
        status = content["status"]
        if not isinstance(status, str) or status not in ("finished", "diverged"):
            raise ValueError(f"a run is finished or diverged, got status {described(status)}")
        layers = names("layers", content["layers"])
        integer("steps", content["steps"], 0, 2**63 - 1)
        number_from("duration", content["duration"], 0, "it is a time")
        for name in ("data", "environment"):
            instance(name, content[name], Mapping, "the one in Run.to_dict()")
        records = _tensors(content["records"], RECORDS, len(layers))
        epochs = _tensors(content["epochs"], EPOCHS, len(layers))
        rest = {name: content[name] for name in ("status", "steps", "data", "duration", "environment")}
        config = TrainConfig.from_dict(content["config"])
        return cls(config=config, layers=layers, records=records, epochs=epochs, **rest)


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if math.isfinite(value) else None


def _tensors(curves: Mapping[str, list], names: tuple[str, ...], layers: int) -> dict[str, Tensor]:
    """Curves of one length from lists, nan where a number was not finite."""
    instance("a run's curves", curves, Mapping, "those in Run.to_dict()")
    missing = [name for name in names if name not in curves]
    if missing:
        raise ValueError(f"the content of a run lacks the curves {', '.join(missing)}; Run.to_dict makes all of it")
    found: dict[str, Tensor] = {}
    length = len(instance(names[0], curves[names[0]], list, "[0, 1, 2]"))
    for name in names:
        wide = name in LAYERWISE
        curve = instance(name, curves[name], list, "[0.5, 0.25]")
        rows: list[Any] = [_row(name, row) if wide else _number(name, row) for row in curve]
        if len(rows) != length or (wide and any(len(row) != layers for row in rows)):
            raise ValueError(f"the curve {name} of a run does not fit {length} records of {layers} layers")
        found[name] = torch.tensor(rows, dtype=torch.float64).reshape((length, layers) if wide else (length,))
    return found


def _row(name: str, row: Any) -> list[float]:
    return [_number(name, x) for x in instance(f"an entry of {name}", row, list, "[0.5, 0.25]")]


def _number(name: str, x: Any) -> float:
    if x is None:
        return math.nan
    return x if type(x) is float else real_number(f"an entry of {name}", x)
