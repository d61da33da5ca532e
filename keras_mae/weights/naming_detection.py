"""Finds how a checkpoint's keys are named, behind what wrappers put before them."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from keras_mae.utils.text import shorten
from keras_mae.weights.checkpoint import LazyTensor, PortError
from keras_mae.weights.key_mapping import NAMINGS, Contents, Naming, port_rows

# parts that torch.compile, FSDP and activation checkpointing insert into keys
_INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_INSERTED_PATTERN = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(_INSERTED)})\.")


class _Place(NamedTuple):
    """A model among a checkpoint's keys; the best of several compares as largest."""

    decoder: bool  # whether it has one
    order: int  # of the naming, earlier ones larger
    prefix: str  # before all its keys

    @property
    def naming(self) -> Naming:
        return NAMINGS[-self.order]


class _NamedTensors(NamedTuple):
    """A checkpoint's tensors by the keys of a known naming."""

    naming: Naming
    tensors: dict[str, LazyTensor]
    strangers: dict[str, LazyTensor]  # whose keys lack the prefix of all others
    notes: list[str]
    prefix: str  # before all keys, of which it was taken off


def markers(naming: Naming, variable: str = "kernel") -> list[str]:
    """Returns a key of the first encoder block and one of the first decoder block."""
    contents = Contents(1, 1, frozenset({"decoder"}), qkv_bias=True)
    keys = {row.path: row.keys[0] for row in port_rows(contents, naming)}
    return [
        keys[f"{side}.blocks.0.attention.qkv.{variable}"]
        for side in ("encoder", "decoder")
    ]


_MARKERS: list[tuple[Naming, list[str]]] = [
    (naming, markers(naming)) for naming in NAMINGS
]


def fits_a_naming(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether the first block of an encoder is among the keys, behind any prefix."""
    return any(True for _ in _places(_without_inserted(tensors, "")))


def find_naming(tensors: Mapping[str, LazyTensor], source: str) -> _NamedTensors:
    """Finds the naming that fits, and takes off what stands before its keys."""
    plain = _without_inserted(tensors, source)
    place = _best_place(plain, source)
    inside, strangers = {}, {}
    for key, tensor in plain.items():
        if key.startswith(place.prefix):
            inside[key.removeprefix(place.prefix)] = tensor
        else:
            strangers[key] = tensor
    inserted = [part for part in _INSERTED if any(part in key for key in tensors)]
    taken_off = [place.prefix] if place.prefix else []
    notes = [f"taken off the keys: {shorten(part)}" for part in inserted + taken_off]
    return _NamedTensors(place.naming, inside, strangers, notes, place.prefix)


def without_inserted(key: str) -> str:
    """Takes off a key what `torch.compile` and others put into it."""
    if any(part in key for part in _INSERTED):
        return _INSERTED_PATTERN.sub("", key)
    return key


def _without_inserted(tensors, source):
    renamed = {}
    for key, tensor in tensors.items():
        name = without_inserted(key)
        if name in renamed:
            raise PortError(
                f"{source}: {shorten(name)} appears twice, with and "
                f"without {' or '.join(_INSERTED)}"
            )
        renamed[name] = tensor
    return renamed


def _places(tensors: Mapping[str, LazyTensor]) -> Iterator[_Place]:
    for number, (naming, (encoder, decoder)) in enumerate(_MARKERS):
        for key in tensors:
            if not key.endswith(encoder):
                continue
            prefix = key.removesuffix(encoder)
            if naming.mark and prefix + naming.mark not in tensors:
                continue
            if not prefix or prefix.endswith(naming.separator):
                yield _Place(prefix + decoder in tensors, -number, prefix)


def _best_place(tensors, source):
    places = list(_places(tensors))
    if not places:
        some = shorten(", ".join(sorted(tensors)[:4]))
        titles = "; ".join(naming.title for naming in NAMINGS)
        raise PortError(
            f"{source} is in an unknown format (known: {titles}). "
            f"Received keys: {some}, ..."
        )
    best = max(places)
    rivals = [place.prefix for place in places if place[:2] == best[:2]]
    if len(rivals) > 1:
        listed = shorten(", ".join(map(repr, sorted(rivals))))
        advice = "pass one as state_key, or leave the others out by ignore"
        if "" in rivals:
            patterns = tuple(f"{prefix}*" for prefix in sorted(rivals) if prefix)
            advice = f"ignore={shorten(str(patterns))} leaves all but the first out"
        raise PortError(
            f"{source} holds several models, whose keys begin with {listed}; {advice}"
        )
    return best
