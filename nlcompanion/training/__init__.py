"""Training runs that record what their filters do, on a CPU or one GPU, and sweeps of them.

A :class:`TrainConfig` is a run's name and its law: :func:`train` turns it into a :class:`Run`, the same to the last bit
each time on a CPU, also when it was killed on the way.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
