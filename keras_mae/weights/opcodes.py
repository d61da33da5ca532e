"""Looks at what a pickle would do, before it is let do it."""

import pickletools
from typing import Any, BinaryIO

from keras_mae.typing import PathLike
from keras_mae.weights.checkpoint import PortError

# all that torch.save writes for tensors, containers, numbers and texts
_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "NEWOBJ",
        "BUILD",
        "BINPERSID",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "MEMOIZE",
    ]
)
# a pickle holds names and shapes; those of a long training run take a megabyte
_LONGEST = 2**23
# a tuple holds a shape, or what makes a tensor; each mention of a part is counted
_MOST_IN_TUPLE = 4096
# items are put into lists and dicts a thousand at a time
_MOST_ON_STACK = 2**17


def check_opcodes(file: BinaryIO, path: PathLike) -> None:
    """Reads a pickle's instructions, and refuses what no state dict needs.

    Args:
        file: Binary file that stands before a pickle; it is left there.
        path: Path of the checkpoint, for errors.

    Raises:
        PortError: If the pickle does anything but name things and fill containers, or
            would hold more than a state dict does.

    Example:

    ```python
    import io
    import pickle

    empty = io.BytesIO(pickle.dumps({}, protocol=2))
    check_opcodes(empty, "model.pth")
    assert empty.tell() == 0
    ```
    """
    start, length = file.tell(), 0
    sizes: list[int] = []
    memo: dict[int, int] = {}
    bounded: Any = _Bounded(file)
    # optional to pickletools, but not in a file, and not for the names below
    argument: Any
    position: Any
    for opcode, argument, position in pickletools.genops(bounded):
        name, length = opcode.name, position - start
        if name not in _OPCODES or length > _LONGEST:
            raise PortError(
                f"{path}: only tensors in plain containers are read. The file has "
                f"{name} at byte {position}"
            )
        # a place in the memo is taken for each thing that is written
        if name.endswith("PUT") and argument > length:
            raise PortError(f"{path}: a pickle remembers more than it holds")
        if name == "FRAME" and argument > _LONGEST:
            raise PortError(f"{path}: a pickle is too long")
        _follow(opcode, argument, sizes, memo)
        if len(sizes) > _MOST_ON_STACK:
            raise PortError(f"{path}: a pickle's stack holds too much")
        if name.startswith("TUPLE") and sizes[-1] > _MOST_IN_TUPLE:
            raise PortError(f"{path}: a pickle's tuples hold too much")
    file.seek(start)


class _Bounded:
    """A file of which no more is read at once than a pickle may be long."""

    def __init__(self, file):
        self._file = file
        self.tell = file.tell

    def read(self, size):
        if size > _LONGEST:
            raise ValueError(f"{size} bytes at once are too many")
        return self._file.read(size)

    def readline(self):
        return self._file.readline(_LONGEST)


def _follow(opcode, argument, sizes, memo):
    """Counts what a pickle's stack and memo would hold: parts of tuples, 0 for a mark.

    A key of a dict is hashed, and a tuple's hash goes down into it: deeper than the
    machine's stack, or for ever where each tuple holds the one before several times.
    Lists and dicts count as one: they can't be hashed.
    """
    popped, before = [], opcode.stack_before
    if pickletools.markobject in before:
        while size := sizes.pop():
            popped.append(size)
        before = before[: before.index(pickletools.markobject)]
    popped += [sizes.pop() for _ in before]
    size = 1 + sum(popped)
    if opcode.name in ("BINGET", "LONG_BINGET"):
        size = memo[argument]
    elif opcode.name == "MARK":
        size = 0
    elif opcode.stack_after in ([pickletools.pylist], [pickletools.pydict]):
        size = 1
    sizes += [size] * len(opcode.stack_after)
    if opcode.name.endswith("PUT"):
        memo[argument] = sizes[-1]
    elif opcode.name == "MEMOIZE":
        memo[len(memo)] = sizes[-1]
