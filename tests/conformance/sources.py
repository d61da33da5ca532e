"""Says beside each assertion where TF Serving's source makes it.

`@source("FILE: NAME", ...)` stands on every test, and `case("FILE: NAME", ...)` makes a
row of `pytest.mark.parametrize` with its own. FILE lies in `tensorflow_serving/` (or is
a path from `tensorflow/`, in TensorFlow), NAME is a function, message, field or flag.
"""

import pytest

source = pytest.mark.source


def case(place, *values, **options):
    """Makes a row of parameters that cites its source."""
    places = (place,) if isinstance(place, str) else place
    return pytest.param(*values, marks=source(*places), **options)
