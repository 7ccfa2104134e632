"""What the whole package asks of numbers, times, seeds and points, with errors that name the argument and the fix.

Everything that comes from outside passes here: no complex number loses its imaginary part, no NaN stands among times,
no seed is cut off to an integer, and nothing is left for torch or NumPy to complain about in their own words.
"""

from nlcompanion._arguments.arrays import at_least_zero, broadcast, numbers, one, positive, real_array
from nlcompanion._arguments.descriptions import described, is_odd, known
from nlcompanion._arguments.objects import (
    a_path,
    choice,
    floating_dtype,
    floating_precision,
    function,
    instance,
    names,
    ordered,
)
from nlcompanion._arguments.points import (
    as_point,
    as_tensor,
    layer_input,
    scalar_of,
    state_of_motion,
    tensor_of,
    vector,
)
from nlcompanion._arguments.single import (
    check_size,
    finite_number,
    flag,
    fraction,
    integer,
    number_from,
    positive_number,
    real_number,
    seed_number,
)
from nlcompanion._arguments.times import as_parameter, as_time, time_span, times, times_within

__all__ = [
    "a_path",
    "as_parameter",
    "as_point",
    "as_tensor",
    "as_time",
    "at_least_zero",
    "broadcast",
    "check_size",
    "choice",
    "described",
    "finite_number",
    "flag",
    "floating_dtype",
    "floating_precision",
    "fraction",
    "function",
    "instance",
    "integer",
    "is_odd",
    "known",
    "layer_input",
    "names",
    "number_from",
    "numbers",
    "one",
    "ordered",
    "positive",
    "positive_number",
    "real_array",
    "real_number",
    "scalar_of",
    "seed_number",
    "state_of_motion",
    "tensor_of",
    "time_span",
    "times",
    "times_within",
    "vector",
]
