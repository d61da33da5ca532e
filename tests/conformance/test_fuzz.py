"""Malformed request bodies: an error for each, no crash, no hang."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.conformance.sources import source

RECONSTRUCT = {"signature_name": "reconstruct"}
SOUND = [
    ("mae", {"instances": [{"b64": "iVBORw0KGgo="}]}),
    (
        "mae",
        {"signature_name": "reconstruct", "inputs": {"image_bytes": [], "seed": []}},
    ),
    ("echo", {"inputs": {"x": [[1.0, 2.0]]}}),
    ("echo", {"instances": [{"x": [1.0, 2.0]}, {"x": [3, 4]}]}),
    ("echo", {"signature_name": "count", "instances": [1, 2, 3]}),
]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just({"b64": "eA=="}),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["x", "b64", "image_bytes", "n"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@st.composite
def damaged_text(draw):
    """A sound body, of which some bytes are cut out, doubled or replaced."""
    name, body = draw(st.sampled_from(SOUND))
    text = json.dumps(body).encode()
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(begin + 6, len(text))))
    middle = draw(st.binary(max_size=4) | st.just(text[begin:end] * 2))
    return name, text[:begin] + middle + text[end:]


@st.composite
def damaged_values(draw):
    """A JSON object of the right keys, whose values are anything."""
    name = draw(st.sampled_from(["mae", "echo", "classifier"]))
    keys = ["instances", "inputs", "signature_name", "examples", "context"]
    body = draw(st.dictionaries(st.sampled_from(keys), anything, max_size=3))
    if draw(st.booleans()):
        body["signature_name"] = draw(
            st.sampled_from(["count", "text", "reconstruct_with_mask_from_pixels"])
        )
    return name, json.dumps(body).encode()


nested = st.integers(1, 100_000).map(lambda n: ("echo", b'{"inputs":' + b"[" * n))
closed = st.integers(1, 3_000).map(
    lambda n: ("echo", b'{"inputs":' + b"[" * n + b"]" * n + b"}")
)
bodies = st.one_of(
    damaged_text(),
    damaged_values(),
    st.tuples(st.sampled_from(["mae", "echo"]), st.binary(max_size=200)),
    nested,
    closed,
)


def fuzz(count):
    """Decorates a test that is asked so many different bodies."""
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    verbs = ["predict", "predict", "classify", "regress"]
    given = hypothesis.given(request_body=bodies, verb=st.sampled_from(verbs))
    return lambda test: settings(given(test))


@source("model_servers/http_rest_api_handler.cc: ProcessRequest")
@fuzz(50)
def test_malformed_bodies(caller, request_body, verb):
    check_answer(caller, request_body, verb)


@pytest.mark.nightly
@source("model_servers/http_rest_api_handler.cc: ProcessRequest")
@fuzz(500)
def test_many_malformed_bodies(caller, request_body, verb):
    check_answer(caller, request_body, verb)


def check_answer(caller, request_body, verb):
    name, body = request_body
    status, answer = caller.post(f"{name}:{verb}", body)
    if status == 200:  # the damage may spare what counts
        assert set(answer) <= {"predictions", "outputs", "results"}
    else:
        assert 400 <= status < 500 and set(answer) == {"error"}, (status, answer)
    assert caller.get("echo")[0] == 200
