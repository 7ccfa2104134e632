"""Keeps PyTorch at two threads or more, whatever a notebook or a test asks for.

Python imports this file at its start where its folder is on the path, as ``tools.elsewhere`` puts it there.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder


class _TorchAtTwoThreads(MetaPathFinder):
    """Finds torch as everybody else does, and changes one function once it is loaded."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            plain = module.set_num_threads
            module.set_num_threads = lambda count: plain(max(2, count))
            plain(2)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _TorchAtTwoThreads())
