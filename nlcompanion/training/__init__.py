"""Training runs that record what their filters do, on a CPU or one GPU, and sweeps of them.

A :class:`TrainConfig` is a run's name and its law: :func:`train` turns it into a :class:`Run`, the same to the last bit
each time on a CPU, also when it was killed on the way.
"""

from nlcompanion._sweep import sweep
from nlcompanion._sweep_records import Record, Sweep, SweepError, load_sweep
from nlcompanion._train_config import TrainConfig
from nlcompanion._train_loop import train
from nlcompanion._train_run import Run
from nlcompanion._train_step import Moment

__all__ = ["Moment", "Record", "Run", "Sweep", "SweepError", "TrainConfig", "load_sweep", "sweep", "train"]
