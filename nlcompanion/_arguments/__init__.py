"""What the whole package asks of numbers, times, seeds and points, with errors that name the argument and the fix.

Everything that comes from outside passes here: no complex number loses its imaginary part, no NaN stands among times,
no seed is cut off to an integer, and nothing is left for torch or NumPy to complain about in their own words.

Its modules load when a check of theirs is asked for: those of paths, switches and single numbers do without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
