"""Finds the state dicts in what a file holds, and chooses one of them."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from keras_mae.utils.text import shorten
from keras_mae.weights.checkpoint import LazyTensor, PortError
from keras_mae.weights.pickles import Stub

# names of the plain weights, which go before others; the first of several is taken
_PLAIN = (
    *("model", "state_dict", "model_state_dict", "module", "model_state", "net"),
    "weights",
)
_AVERAGED = "an averaged copy of the weights"
# levels of dicts that are looked into, and how many dicts
_DEEPEST, _MOST = 3, 10_000


class State(NamedTuple):
    """A dict of tensors."""

    name: str  # the keys that lead to it, such as "model"; "" for all of the file
    tensors: dict[str, LazyTensor]
    others: dict[str, str]  # keys of what is no tensor -> what it is


def _find_states(content: Any) -> Iterator[State]:
    """Yields all dicts that hold tensors, the outermost first."""
    queue: list[tuple[str, Any, int]] = [("", content, 0)]
    seen = {id(content)}
    for name, items, depth in queue if isinstance(content, Mapping) else ():
        named = {key: item for key, item in items.items() if isinstance(key, str)}
        tensors = {k: item for k, item in named.items() if isinstance(item, LazyTensor)}
        if tensors:
            others = {
                key: f"{item!r:.60}" if isinstance(item, Stub) else type(item).__name__
                for key, item in named.items()
                if key not in tensors
            }
            yield State(name, tensors, others)
        for key, item in named.items() if depth < _DEEPEST else ():
            # names are made of few: each may be long
            if len(seen) == _MOST:
                break
            if isinstance(item, Mapping) and id(item) not in seen:
                seen.add(id(item))
                queue.append((f"{name}.{key}".strip("."), item, depth + 1))


def choose_state(
    content: Any,
    state_key: str | None,
    fits: Callable[[Mapping[str, LazyTensor]], bool],
    source: str,
) -> tuple[State, list[str]]:
    """Returns a file's state dict, and notes on which it is."""
    states = {state.name: state for state in _find_states(content)}
    if not states:
        raise PortError(f"{source} does not hold a dict of tensors")
    if state_key in states:
        return states[state_key], []
    if state_key is not None:
        states = _behind(states, state_key, source)
    fitting = [name for name, state in states.items() if fits(state.tensors)]
    # where none fits, the error about the largest will say what is missing
    found = fitting or [max(states, key=lambda name: len(states[name].tensors))]
    plain = [name for name in _PLAIN if name in found]
    if not plain and len(found) > 1:
        raise PortError(
            f"{source} holds several state dicts; pass state_key. "
            f"{_listed(states, found)}"
        )
    chosen = (plain or found)[0]
    kinds, notes = _kinds(content, found), []
    if kinds[chosen] == _AVERAGED:
        notes = [f"the weights are the averaged copy, {chosen}"]
    notes += [
        f"{kinds[name]} is there too: state_key={name!r} reads it"
        for name in fitting
        if name != chosen
    ]
    return states[chosen], notes


def _behind(states, state_key, source):
    """Returns the parts of state dicts whose keys begin with `state_key`."""
    found = {}
    for name, state in states.items():
        start = state_key.removeprefix(f"{name}.")
        tensors, others = (
            {
                key.removeprefix(start): item
                for key, item in items.items()
                if key.startswith(start)
            }
            for items in state[1:]
        )
        if tensors:
            found[name] = State(name, tensors, others)
    if found:
        return found
    raise PortError(
        f"{source}: state_key must be the name of a state dict, or what its keys begin "
        f"with. {_listed(states, states)}. Received: {state_key!r:.60}"
    )


def _kinds(content, names):
    """Says what each of a file's state dicts is."""
    averaged = {name for name in names if "ema" in re.split(r"[._]", name)}
    kinds = {name: _AVERAGED if name in averaged else "another model" for name in names}
    if "meta" in content and {"state_dict", "ema_state_dict"} <= kinds.keys():
        # mmengine's EMAHook swaps the two on saving
        kinds |= {"state_dict": _AVERAGED, "ema_state_dict": "the model as trained"}
    return kinds


def _listed(states, names):
    texts = (
        # safetensors and HDF5 have no dicts, and so no names
        f"{repr(name) if name else f'keys such as {min(states[name].tensors)!r}'} "
        f"({len(states[name].tensors)} tensors)"
        for name in names
    )
    return shorten(f"There are {', '.join(texts)}")
