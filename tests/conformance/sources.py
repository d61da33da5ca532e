"""Says beside each assertion where TF Serving's source makes it.

`@source("FILE: NAME", ...)` stands on every test, and `case("FILE: NAME", ...)` makes a
row of `pytest.mark.parametrize` with its own. FILE lies in `tensorflow_serving/` (or is
a whole path in TensorFlow, from `tensorflow/`), NAME is a function, message, field or flag in it.
"""

import pytest

source = pytest.mark.source


def case(place, *values, **options):
    """Makes a row of parameters that cites its source."""
    places = (place,) if isinstance(place, str) else place
    return pytest.param(*values, marks=source(*places), **options)
