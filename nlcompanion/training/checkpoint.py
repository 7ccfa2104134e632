"""Checkpoints of training runs: written in one move, read without running code, verified."""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlcompanion._extras import needs
from nlcompanion._storage import Damaged, replacing, set_aside
from nlcompanion.training.config import TrainConfig

with needs("training"):
    import attrs
    from attrs.validators import deep_mapping, ge, in_, instance_of

_FORMAT = 1
_COUNT = [instance_of(int), ge(0)]
_LIST = instance_of((list, tuple))


@attrs.frozen(kw_only=True, eq=False)
class Checkpoint:
    """A run between two epochs.

    Attributes:
        config: its settings.
        data: its two data sets, with checksums.
        pace: steps between two records, epochs between two evaluations.
        status: ``"running"``, ``"finished"`` or ``"diverged"``.
        epoch: epochs done.
        steps: steps taken; of a run that diverged, those with a finite loss.
        model: the network's state.
        momentum: the momentum buffers.
        norms: the filters' initial norms.
        records: curves over the recorded steps.
        epochs: a row for every evaluation: epochs done, training loss, accuracy, accuracy recalibrated.
        duration: seconds of training so far.
        watch: the state of a watch, or None.
    """

    config: dict = attrs.field(validator=instance_of(dict))
    data: dict[str, dict] = attrs.field(validator=deep_mapping(instance_of(str), instance_of(dict)))
    pace: list = attrs.field(validator=instance_of(list))
    status: str = attrs.field(validator=in_(("running", "finished", "diverged")))
    epoch: int = attrs.field(validator=_COUNT)
    steps: int = attrs.field(validator=_COUNT)
    model: dict = attrs.field(validator=instance_of(dict))
    momentum: Sequence[Tensor] = attrs.field(validator=_LIST)
    norms: Sequence[Tensor] = attrs.field(validator=_LIST)
    records: dict[str, Tensor] = attrs.field(validator=instance_of(dict))
    epochs: list = attrs.field(validator=instance_of(list))
    duration: float = attrs.field(validator=[instance_of((float, int)), ge(0.0)])
    watch: Any = None

    def check(self, config: TrainConfig, steps_per_epoch: int, layers: int) -> None:
        """Raise Damaged unless a run with these settings has this state at some time."""
        try:
            wrong = list(self._impossible(config, steps_per_epoch, layers))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Damaged(f"its entries are not what they should be ({error!r})") from error
        if wrong:
            raise Damaged(f"no run of {config.epochs} epochs leaves such values of {', '.join(wrong)}")

    def _impossible(self, config: TrainConfig, steps_per_epoch: int, layers: int) -> Iterator[str]:
        """The names of what contradicts the settings, or the rest."""
        stride, every = self.pace
        diverged = self.status == "diverged"
        last = config.epochs - (self.status == "running")
        if not (config.epochs if self.status == "finished" else min(1, last)) <= self.epoch <= last:
            yield "epoch"
        weights = [x for name, x in self.model.items() if not name.endswith(("running_mean", "running_var"))]
        if not diverged and not all(x.isfinite().all() for x in weights):
            yield "weights"
        whole = self.epoch * steps_per_epoch
        if not (whole - steps_per_epoch if diverged else whole) <= self.steps <= whole:
            yield "steps"
            return  # all curves are as long as it says
        records = self.records
        at = torch.arange(0, self.steps, stride, dtype=torch.float64)
        rates = [config.filter_lr_at(int(step) // steps_per_epoch) for step in at]
        shapes: dict[str, tuple[int, ...]] = {name: (len(at),) for name in ("step", "loss", "lr")}
        shapes |= {name: (len(at), layers) for name in ("filter_norm", "gradient_norm", "angular_update")}
        for name, shape in shapes.items():
            if records[name].shape != shape or records[name].dtype != torch.float64 or (records[name] < 0).any():
                yield f"records of {name}"
        if records["step"].tolist() != at.tolist() or records["lr"].tolist() != rates:
            yield "records of step and lr"
        if not records["loss"].isfinite().all():
            yield "records of loss"
        done = self.epoch - diverged
        if [row[0] for row in self.epochs] != [e for e in range(1, done + 1) if e % every == 0 or e == config.epochs]:
            yield "epochs"
        for _, loss, *accuracies in self.epochs:
            if not (0 <= loss < math.inf and len(accuracies) == 2 and all(0 <= part <= 1 for part in accuracies)):
                yield "epochs"
                return


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Store a checkpoint; whoever is killed meanwhile leaves the one before."""
    with replacing(path) as temporary:
        try:
            torch.save({"format": _FORMAT, **attrs.asdict(checkpoint, recurse=False)}, temporary)
        except RuntimeError as error:  # torch's own writer, whose words about a full disk do not name it
            reason = str(error).partition("\n")[0]
            raise OSError(f"the checkpoint {path} could not be written ({reason}); is the disk full?") from error
        if checkpoint.watch is not None:
            _readable(temporary)
    if checkpoint.status != "running":
        for partial in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed while they wrote
            partial.unlink(missing_ok=True)


def _readable(path: Path) -> None:
    """Raise TypeError if the watch's state, the one part that is not ours, could not be read without running code."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TypeError(
            "the state_dict of watch holds more than tensors, numbers, texts, lists and dictionaries, and a checkpoint "
            f"with it could not be read again without running code ({_culprit(error)}); convert it to those"
        ) from error


def _culprit(error: Exception) -> str:
    found = re.search(r"Unsupported (?:global|class|operand)\S* .*?(?= was not| Please|$)", str(error))
    return found.group() if found else str(error).partition("\n")[0]


@contextmanager
def damage_set_aside(path: Path) -> Iterator[None]:
    """Rename a checkpoint that shows to be damaged, with a warning that names it; the run then begins anew."""
    try:
        yield
    except Damaged as error:
        aside = set_aside(path)
        warnings.warn(
            f"the checkpoint {path} is damaged ({error}) and was not used; it was renamed to {aside.name}, and the run "
            "starts from the beginning",
            stacklevel=4,
        )


def read(path: Path) -> Checkpoint | None:
    """The checkpoint, or None where there is none.

    Raises:
        Damaged: it is not what :func:`write` wrote.
        OSError: it cannot be read, and may be whole.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"the checkpoint {path} is no file; name one inside it: {path / 'run.pt'}")
    content = io.BytesIO(path.read_bytes())  # what goes wrong from here on is the content's fault, not the disk's
    try:
        return _parsed(content)
    except Exception as error:  # zipfile and torch raise many kinds on damaged files; each means the same here
        raise Damaged(str(error) or repr(error)) from error


def _parsed(file: io.BytesIO) -> Checkpoint:
    with zipfile.ZipFile(file) as parts:  # torch itself does not compare the checksums in its files
        if (bad := parts.testzip()) is not None:
            raise Damaged(f"its part {bad} does not have its checksum")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise Damaged("it is a torch file, but not a checkpoint of this version")
    names = [part.name for part in attrs.fields(Checkpoint)]
    if missing := [name for name in names if name not in content]:
        raise Damaged(f"it lacks {', '.join(missing)}")
    return Checkpoint(**content)
