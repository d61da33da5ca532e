"""Safe unpickler of containers, numbers and strings only, which calls nothing.

A file's names are never looked up: where one is called, `builders` may have a function
for it, and every other gives an inert `Stub`. Only strings, short ints and stubs are
hashed, copies are counted, and so are steps and bytes: a file is read or refused in
bounded time and memory.
"""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

# instructions in a file: a tensor takes forty, a long training run half a million
_MOST_STEPS = 2**20
# steps that a container, mark or name counts for: they take more than others
_OBJECT_STEPS = 3
# bytes of instructions and strings in a file
MOST_BYTES = 2**26
_LONGEST_NAME = 512
_OPCODES = {code.code.encode("latin-1"): code.name for code in pickletools.opcodes}
# among longer ints, used as keys, many may share a hash; a long text would be copied
# and searched wherever the same key is used again
_LARGEST_KEY, _LONGEST_KEY = 2**31, 256


class Stub:
    """What a pickle names or builds that is no container, number or string."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name:.80}>"


class Attributes(dict[str, Any]):
    """An object of which only the attributes are kept."""


class Unpickler:
    """Reads the pickles that follow one another in `data`."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        builders: Mapping[str, Callable[..., Any]],
        find_storage: Callable[[Any], Any],
    ):
        self.data, self.position = data, 0
        self.steps = self.bytes = 0
        # takes the tuple that identifies a tensor's storage
        self.find_storage = find_storage
        # take the arguments that the pickle gives
        self.builders = {
            "argparse.Namespace": lambda *_: Attributes(),
            "collections.Counter": self._mapping,
            "collections.OrderedDict": self._mapping,
            "collections.defaultdict": lambda *_: {},
            **builders,
        }

    def load(self) -> Any:
        """Reads one pickle, and moves behind it."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        while (code := self.take(1)) != pickle.STOP:
            self.spend(1)
            if code not in _INSTRUCTIONS:
                raise ValueError(
                    f"unsupported pickle opcode {_OPCODES.get(code, code)!s} at byte "
                    f"{self.position - 1}: only state dicts are read"
                )
            _INSTRUCTIONS[code](self)
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        """Counts steps; raises where a file takes more than weights do."""
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise ValueError(f"its pickles take more than {_MOST_STEPS} steps")

    def take(self, count: int) -> bytes:
        """Reads bytes."""
        start, self.position = self.position, self.position + count
        self.bytes += count
        if self.bytes > MOST_BYTES or self.position > len(self.data):
            raise ValueError("a pickle is truncated or too long")
        return self.data[start : self.position]

    def _number(self, width):
        return int.from_bytes(self.take(width), "little")

    def _line(self):
        end = self.data.find(b"\n", self.position, self.position + _LONGEST_NAME)
        if end < 0:
            raise ValueError("a name is too long")
        return self.take(end + 1 - self.position)[:-1].decode()

    def _pop(self, count):
        if len(self.stack) < count:
            raise ValueError("a pickle's stack is empty")
        start = len(self.stack) - count
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _pop_marked(self):
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _mark(self):
        self.spend(_OBJECT_STEPS)
        self.marked.append(self.stack)
        self.stack = []

    def _container(self, kind):
        self.spend(_OBJECT_STEPS)
        return kind()

    def _frozenset(self):
        self._pop_marked()
        return Stub("frozenset")

    def _name(self, module, attribute):
        texts = isinstance(module, str) and isinstance(attribute, str)
        if not texts or len(module) + len(attribute) > _LONGEST_NAME:
            raise ValueError("a name is malformed")
        self.spend(_OBJECT_STEPS)
        return Stub(f"{module}.{attribute}")

    def _call(self, function, arguments, *_):
        if not isinstance(function, Stub) or not isinstance(arguments, tuple):
            raise ValueError("a call is malformed")
        build = self.builders.get(function.name)
        return build(*arguments) if build else Stub(function.name)

    def _build(self, target, state):
        if isinstance(target, Attributes) and isinstance(state, dict):
            self.spend(len(state))
            target.update(state)
        return target

    def _mapping(self, *arguments):
        """Returns what `OrderedDict` makes of nothing, a dict, or a list of pairs."""
        if not arguments:
            return {}
        (items,) = arguments
        self.spend(2 * len(items))
        pairs = items.items() if isinstance(items, dict) else items
        return {_as_key(key): value for key, value in pairs}

    def _add(self, items):
        # to an object's own list or set: what a stub is given is dropped
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set_items(self, items):
        if isinstance(self.stack[-1], dict):
            self.spend(len(items))  # each is looked at again, in search of weights
            keys = map(_as_key, items[::2])
            self.stack[-1].update(zip(keys, items[1::2], strict=True))


def _as_key(key):
    """Returns a key whose hash no file can choose; a stub stands for other kinds."""
    if type(key) is str and len(key) <= _LONGEST_KEY:
        return key
    if type(key) is int and abs(key) < _LARGEST_KEY:
        return key
    return Stub(type(key).__name__)


def _pushing(value_of):
    """Makes an instruction that puts `value_of(machine)` on the stack."""

    def push(machine):
        value = value_of(machine)  # first: it may change which stack is on top
        machine.stack.append(value)

    return push


def _constant(value):
    return _pushing(lambda machine: value)


def _packed(format):
    size = struct.calcsize(format)
    return _pushing(lambda machine: struct.unpack(format, machine.take(size))[0])


def _sized(width, decode):
    """Makes an instruction of a length of `width` bytes, then that many to decode."""
    return _pushing(lambda machine: decode(machine.take(machine._number(width))))


def _put(place_of):
    def put(machine):
        machine.memo[place_of(machine)] = machine.stack[-1]

    return put


def _get(width):
    return _pushing(lambda machine: machine.memo[machine._number(width)])


def _row(count):
    return _pushing(lambda machine: tuple(machine._pop(count)))


_INSTRUCTIONS: dict[bytes, Callable[[Unpickler], Any]] = {
    pickle.PROTO: lambda machine: machine.take(1),
    pickle.FRAME: lambda machine: machine.take(8),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.BININT: _packed("<i"),
    pickle.BININT1: _packed("<B"),
    pickle.BININT2: _packed("<H"),
    pickle.BINFLOAT: _packed(">d"),
    pickle.LONG1: _sized(1, pickle.decode_long),
    pickle.SHORT_BINUNICODE: _sized(1, bytes.decode),
    pickle.BINUNICODE: _sized(4, bytes.decode),
    pickle.BINUNICODE8: _sized(8, bytes.decode),
    pickle.SHORT_BINBYTES: _sized(1, bytes),
    pickle.BINBYTES: _sized(4, bytes),
    pickle.BINBYTES8: _sized(8, bytes),
    pickle.BYTEARRAY8: _sized(8, bytes),
    pickle.BINPUT: _put(lambda machine: machine._number(1)),
    pickle.LONG_BINPUT: _put(lambda machine: machine._number(4)),
    pickle.MEMOIZE: _put(lambda machine: len(machine.memo)),
    pickle.BINGET: _get(1),
    pickle.LONG_BINGET: _get(4),
    pickle.EMPTY_TUPLE: _row(0),
    pickle.TUPLE1: _row(1),
    pickle.TUPLE2: _row(2),
    pickle.TUPLE3: _row(3),
    pickle.TUPLE: _pushing(lambda machine: tuple(machine._pop_marked())),
    pickle.EMPTY_LIST: _pushing(lambda machine: machine._container(list)),
    pickle.APPEND: lambda machine: machine._add(machine._pop(1)),
    pickle.APPENDS: lambda machine: machine._add(machine._pop_marked()),
    pickle.EMPTY_DICT: _pushing(lambda machine: machine._container(dict)),
    pickle.SETITEM: lambda machine: machine._set_items(machine._pop(2)),
    pickle.SETITEMS: lambda machine: machine._set_items(machine._pop_marked()),
    pickle.EMPTY_SET: _constant(Stub("set")),
    pickle.ADDITEMS: lambda machine: machine._add(machine._pop_marked()),
    pickle.FROZENSET: _pushing(Unpickler._frozenset),
    pickle.MARK: Unpickler._mark,
    pickle.POP: lambda machine: machine._pop(1),
    pickle.POP_MARK: Unpickler._pop_marked,
    pickle.GLOBAL: _pushing(
        lambda machine: machine._name(machine._line(), machine._line())
    ),
    pickle.STACK_GLOBAL: _pushing(lambda machine: machine._name(*machine._pop(2))),
    pickle.REDUCE: _pushing(lambda machine: machine._call(*machine._pop(2))),
    pickle.NEWOBJ: _pushing(lambda machine: machine._call(*machine._pop(2))),
    pickle.NEWOBJ_EX: _pushing(lambda machine: machine._call(*machine._pop(3))),
    pickle.BUILD: _pushing(lambda machine: machine._build(*machine._pop(2))),
    pickle.BINPERSID: _pushing(lambda machine: machine.find_storage(*machine._pop(1))),
}  # fmt: skip
