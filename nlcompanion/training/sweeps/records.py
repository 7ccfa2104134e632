"""What a sweep gives back: one record per run, read from its file."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nlcompanion._arguments import a_path, counted, described, instance, integer
from nlcompanion._extras import needs
from nlcompanion._provenance import provenance
from nlcompanion._storage import Damaged
from nlcompanion.training.config import TrainConfig
from nlcompanion.training.sweeps import store as files
from nlcompanion.training.sweeps.store import SweepError

with needs("training"):
    import attrs

if TYPE_CHECKING:
    from nlcompanion.training.run import Run

_SETTINGS = tuple(setting.name for setting in attrs.fields(TrainConfig))
_ENVIRONMENT = ("nlcompanion", "torch", "python", "platform", "device", "threads")  # a Run's, within the provenance


@attrs.frozen(eq=False)
class Record:
    """One run of a sweep, as its file tells it.

    Attributes:
        config: its :class:`TrainConfig`.
        status: ``"finished"``, ``"diverged"``, ``"failed"``, ``"missing"`` (not run yet), ``"damaged"`` (its file is).
        run: the :class:`Run` of a finished or diverged run, else None.
        error: the traceback of a failed run, or what is wrong with a damaged file; else None.
        provenance: versions, platform, device, seed, date and duration in seconds; empty without a run.
        path: of the file, whether it exists or not.
    """

    config: TrainConfig
    status: str
    path: Path
    run: Run | None = attrs.field(default=None, repr=False)
    error: str | None = attrs.field(default=None, repr=False)
    provenance: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    @property
    def key(self) -> str:
        """What names the file: the configuration's hash."""
        return self.config.key


@attrs.frozen(eq=False)
class Sweep(Sequence[Record]):
    """The records of a sweep, in the order of their configurations.

    A sequence: ``len(result)``, ``result[0]``, ``for record in result``.

    Attributes:
        folder: where the files are.
        records: one :class:`Record` per configuration.

    Example:
        >>> from nlcompanion import TrainConfig, sweep
        >>> planned = sweep([TrainConfig(lr=lr, seed=s) for lr in (0.1, 0.2) for s in (0, 1)], "runs", run=False)
        >>> planned
        Sweep(4 runs in ...runs: 4 missing)
        >>> [(lr, len(seeds)) for lr, seeds in planned.by("lr").items()]
        [(0.1, 2), (0.2, 2)]
        >>> planned.where(lr=0.2).table("lr", "seed")
        {'lr': [0.2, 0.2], 'seed': [0, 1], 'status': ['missing', 'missing']}
    """

    folder: Path
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, which: int) -> Record: ...
    @overload
    def __getitem__(self, which: slice) -> Sweep: ...
    def __getitem__(self, which):
        chosen = self.records[which]
        return Sweep(self.folder, chosen) if isinstance(which, slice) else chosen

    def __repr__(self) -> str:
        states = ", ".join(f"{count} {status}" for status, count in self.status.items())
        return f"Sweep({counted(len(self), 'run')} in {self.folder}{': ' + states if states else ''})"

    @property
    def configs(self) -> tuple[TrainConfig, ...]:
        """The configurations."""
        return tuple(record.config for record in self.records)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of those that have one: finished and diverged."""
        return tuple(record.run for record in self.records if record.run is not None)

    @property
    def status(self) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(record.status for record in self.records)

    def where(self, **settings: Any) -> Sweep:
        """The records whose configuration has these settings, and ``status=...`` if given.

        Raises:
            ValueError: a name is no setting, or no run can have this value of it.
        """
        _known(*settings)
        wanted = {name: _as_stored(name, value) for name, value in settings.items()}
        chosen = [record for record in self.records if all(_value(record, n) == v for n, v in wanted.items())]
        return Sweep(self.folder, tuple(chosen))

    def by(self, *settings: str) -> dict[Any, Sweep]:
        """The records in groups of equal settings, as a figure with error bars over seeds needs them.

        Returns:
            A Sweep for each value of the setting (each tuple of values, for several settings), in order of appearance.

        Raises:
            ValueError: a name is no setting.
        """
        groups: dict[Any, list[Record]] = {}
        for record in self.records:
            values = tuple(_value(record, name) for name in settings)
            groups.setdefault(values[0] if len(values) == 1 else values, []).append(record)
        return {value: Sweep(self.folder, tuple(records)) for value, records in groups.items()}

    def table(self, *settings: str) -> dict[str, list]:
        """Columns, ready for ``pandas.DataFrame``.

        Args:
            settings: which; by default those that differ between the configurations.

        Returns:
            Those settings and the status; and for each quantity that the runs measured at their last epoch, a column
            with its value, None without a run.
        """
        names = settings or tuple(_differing(self.configs))
        columns = {name: [_value(record, name) for record in self.records] for name in (*names, "status")}
        last = [_last(record.run) for record in self.records]
        measured = list(dict.fromkeys(name for values in last for name in values))
        return {**columns, **{name: [values.get(name) for values in last] for name in measured}}


def _as_stored(name: str, value: Any) -> Any:
    """A value as configurations hold it: checked, and in the one form that equal settings have."""
    if name in ("status", "key"):
        return instance(name, value, str, '"finished"' if name == "status" else "that of a TrainConfig")
    if name == "lr_drops":
        return tuple(integer(name, epoch, 1) for epoch in instance(name, value, (tuple, list), "(30, 60)"))
    field = attrs.fields_dict(TrainConfig)[name]
    converter: Any = field.converter
    return converter(value, None, field)


def _value(record: Record, name: str) -> Any:
    _known(name)
    return getattr(record if name in ("status", "key") else record.config, name)


def _known(*names: str) -> None:
    for name in names:
        if not isinstance(name, str) or name not in (*_SETTINGS, "status", "key"):
            raise ValueError(
                f"{described(name)} is no setting of a run; there are {', '.join(_SETTINGS)}, and status and key"
            )


def _differing(configs: Sequence[TrainConfig]) -> list[str]:
    return [name for name in _SETTINGS if len({getattr(config, name) for config in configs}) > 1]


def _last(run: Run | None) -> dict[str, float]:
    if run is None:
        return {}
    curves = {} if run.status == "diverged" else {name: run.epochs[name][-1].item() for name in _MEASURED}
    return {"steps": run.steps, **curves}


_MEASURED = ("train_loss", "test_accuracy", "test_accuracy_recalibrated")


# --- from files, and to them ----------------------------------------------------------------------------------------


def load_sweep(folder: Path | str) -> Sweep:
    """Every run that a folder holds, in the order of their settings.

    Warns:
        UserWarning: a file is damaged and left out; the sweep that made it sets it aside and does the run again.

    Raises:
        SweepError: there is no such folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(load_sweep(folder))
        0
    """
    folder = Path(a_path("folder", folder)).absolute()
    if not folder.is_dir():
        raise SweepError(f"the folder {folder} does not exist, so there are no runs to read; sweep(...) makes it")
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            if (content := files.stored(folder, path.stem)) is not None:  # another process may just set it aside
                records.append(interpret(content, path))
        except ValueError as error:
            warnings.warn(f"{path} is damaged and left out: {error}; repeat its sweep", stacklevel=2)
        except OSError as error:
            warnings.warn(f"{path} cannot be read and is left out ({error}); mend its permissions", stacklevel=2)
    records.sort(key=lambda record: [(str(type(v)), str(v)) for v in map(record.config.__getattribute__, _SETTINGS)])
    return Sweep(folder, tuple(records))


def read(config: TrainConfig, folder: Path) -> Record:
    """The record of a configuration, whatever state it is in.

    Raises:
        SweepError: the file is there and cannot be read; it may be whole.
    """
    path = files.result_path(folder, config.key)
    try:
        content = files.stored(folder, config.key)
        return Record(config, "missing", path) if content is None else interpret(content, path)
    except ValueError as error:
        return Record(config, "damaged", path, error=f"{path} is damaged: {error}")
    except OSError as error:
        raise SweepError(
            f"what is stored of the run {config.key} cannot be read ({error}); mend the permissions there, or move it "
            "out of the way"
        ) from error


def interpret(content: Mapping[str, Any], path: Path) -> Record:
    """The record that a file's content tells.

    Raises:
        ValueError: it tells none; says why.
    """
    try:
        return _record(content, path)
    except (AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"its entries are not what they should be ({error!r})") from error


def _record(content: Mapping[str, Any], path: Path) -> Record:
    config, status, run = TrainConfig.from_dict(content["config"]), content["status"], None
    if config.key != content["key"]:
        raise Damaged(f"its configuration has the hash {config.key} in this version of nlcompanion")
    if status not in files.ENDED or (content["run"] is None) != (status == "failed"):
        raise Damaged(f"it has the status {status!r} and {'no' if content['run'] is None else 'a'} run")
    provenance = content["provenance"]
    if status != "failed":
        from nlcompanion.training.run import Run

        around = {name: provenance.get(name) for name in _ENVIRONMENT}
        outside = {"config": content["config"], "status": status, "duration": provenance.get("duration_seconds")}
        run = Run.from_dict({**content["run"], **outside, "environment": around})
    return Record(config, status, path, run, content["error"], provenance)


def content_of(run: Run) -> dict[str, Any]:
    """What a run's file holds: what is the same each time in ``run``, what is not in ``provenance``."""
    inside = run.to_dict()
    outside = {name: inside.pop(name) for name in ("config", "status", "duration", "environment")}
    made = {**provenance(0.0), **outside["environment"], "seed": run.config.seed}
    return {
        "key": run.config.key,
        "status": outside["status"],
        "config": outside["config"],
        "run": inside,
        "error": None,
        "provenance": {**made, "duration_seconds": outside["duration"]},
    }


def content_of_failure(config: TrainConfig, error: str, duration: float) -> dict[str, Any]:
    """What the file of a failed run holds."""
    return {
        "key": config.key,
        "status": "failed",
        "config": config.to_dict(),
        "run": None,
        "error": error,
        "provenance": {**provenance(duration), "device": config.device, "seed": config.seed},
    }
