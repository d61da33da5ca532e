"""Crafted pickles: no function is called, and few bytes don't become many."""

import pickle
import pickletools

import numpy as np
import pytest

from tests.crafted import forge
from tests.crafted.forge import (
    HUGE,
    call,
    first_state,
    mapping,
    name,
    number,
    program,
    row,
    text,
)
from tests.crafted.refusing import refuse

# what exploits name; any other name would do as well
NAMES = [
    *("os.system", "posix.system", "os.popen", "os.execv", "os.unlink"),
    *("subprocess.Popen", "subprocess.check_output", "builtins.eval"),
    *("builtins.exec", "builtins.getattr", "builtins.open", "builtins.__import__"),
    *("__builtin__.eval", "importlib.import_module", "runpy.run_path"),
    *("shutil.rmtree", "pickle.loads", "marshal.loads", "types.FunctionType"),
    *("types.CodeType", "operator.attrgetter", "functools.partial"),
    *("webbrowser.open", "socket.socket", "torch.load", "torch.hub.load"),
    *("torch.jit.load", "torch._utils._rebuild_sparse_tensor"),
    *("torch.storage._load_from_bytes", "torch.serialization.load", "numpy.load"),
    *("numpy.core.multiarray._reconstruct", "keras.models.load_model"),
    *("keras.layers.Lambda", "collections.OrderedDict.fromkeys"),
    *("collections.Counter", "_codecs.decode", "pathlib.Path"),
    *("argparse.ArgumentParser", "torch.FloatStorage.__class__", "torch.Tensor"),
]


def touch(marker):
    """The instructions that run a command."""
    return call(name("os", "system"), text(f"touch {marker}"))


@pytest.mark.parametrize("place", NAMES)
def test_named_functions_are_not_called(place, tmp_path, model):
    module, _, attribute = place.rpartition(".")
    stacked = text(module) + text(attribute) + b"\x93"  # as protocol 4 names things
    for index, function in enumerate([name(module, attribute), stacked]):
        content = program(
            mapping((text("model"), call(function, text("touch executed"))))
        )
        writer = [forge.write_zip, forge.write_legacy][index]
        refuse(model, writer(tmp_path / f"{index}.pth", content, {}))
    assert not (tmp_path / "executed").exists()


# where else a call may hide, given the instructions of one
HIDING = {
    "alone": lambda bad: bad,
    "in a state": lambda bad: mapping((text("model"), mapping((text("a"), bad)))),
    "as a key": lambda bad: mapping((bad, number(1))),
    "as a shape": lambda bad: call(
        name("torch._utils", "_rebuild_tensor_v2"),
        forge.storage("0", 1), number(0), bad, row(), b"\x89", b"}",
    ),
    "as a storage": lambda bad: row(
        text("storage"), bad, text("0"), text("cpu"), number(1)
    ) + b"Q",
    "as an id": lambda bad: bad + b"Q",
    "in a list": lambda bad: b"](" + bad + b"e",
    "as arguments": lambda bad: name("torch", "Size") + bad + b"R",
    "as attributes": lambda bad: name("argparse", "Namespace") + b")\x81" + bad + b"b",
    "as a class": lambda bad: bad + b")\x81",
    "in 500 calls": lambda bad: name("torch", "Size") * 500 + bad + b"\x85R" * 500,
    "behind the weights": lambda bad: b"}" + bad,
}  # fmt: skip


@pytest.mark.parametrize("place", HIDING)
def test_calls_are_not_hidden(place, tmp_path, model):
    marker = tmp_path / "executed"
    content = program(HIDING[place](touch(marker)))
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, {}))
    assert not marker.exists()


def test_an_ordinary_reader_runs_them(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(program(HIDING["in a state"](touch(marker))))
    assert marker.exists()


REFUSED = [
    *("INT", "LONG", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES8", "BYTEARRAY8", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"),
    *("UNICODE", "BINUNICODE8", "FLOAT", "LIST", "DICT", "EMPTY_SET", "ADDITEMS"),
    *("FROZENSET", "POP", "DUP", "POP_MARK", "GET", "PUT", "EXT1", "EXT2", "EXT4"),
    *("INST", "NEWOBJ_EX", "PERSID"),
]


@pytest.mark.parametrize("instruction", REFUSED)
def test_instructions_that_no_weights_need(instruction, tmp_path, model):
    (code,) = (code for code in pickletools.opcodes if code.name == instruction)
    lines = code.arg is not None and "nl" in code.arg.name
    argument = b"'0'\n0\n" if lines else bytes(8)
    content = program(b"}" + code.code.encode("latin-1") + argument)
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, {}))


def again(slot, times, kind):
    """Puts a thing that is remembered into a tuple or list several times."""
    get = b"j" + slot.to_bytes(4, "little")
    put = b"r" + (slot + 1).to_bytes(4, "little")
    return (
        b"(" + get * times + b"t" if kind == "tuple" else b"](" + get * times + b"e"
    ) + put


def laughs(kind, levels=40):
    """Ten of ten of ten ...: a few hundred bytes, and 10 ** 40 things."""
    start = (b")" if kind == "tuple" else b"]") + b"r" + bytes(4)
    steps = [again(level, 10, kind) for level in range(levels)]
    # all but the last would stay on the stack: a row takes them
    return b"(" + start + b"".join(steps) + b"t"


DEEP = 200_000
BOMBS = {
    "a deep key": mapping((b")" + b"\x85" * DEEP, number(1))),
    "a deep key, remembered": mapping(
        (b")" + b"\x94\x85" * DEEP, number(1)),
    ),
    "a deep name of a storage": row(
        text("storage"), b")" + b"\x85" * DEEP, text("0"), text("cpu"), number(1)
    ) + b"Q",
    "a deep list": b"]" * DEEP + b"a" * (DEEP - 1),
    "laughs as a key": mapping((laughs("tuple"), number(1))),
    "laughs as a storage": row(
        text("storage"), name("torch", "FloatStorage"), laughs("list"), text("cpu"),
        number(1),
    ) + b"Q",
    "laughs as an id": laughs("list") + b"Q",
    "laughs as a shape": call(name("torch", "Size"), laughs("list")),
    "laughs as a call": call(name("argparse", "Namespace"), laughs("list")),
    "a state in itself": b"}r" + bytes(4) + text("model") + b"j" + bytes(4) + b"s",
    "a list in itself": b"]r" + bytes(4) + b"j" + bytes(4) + b"a",
    "bytes without end": b"B" + b"\xff" * 4,
    "text without end": b"X" + b"\xff\xff\xff\x7f",
    "a frame without end": b"\x95" + b"\xff" * 7 + b"\0",
    "a name without end": b"c" + b"a" * 2**24,
    "a memory without end": b"}r\xff\xff\xff\x7f",
    "dicts without end": b"}" * 2**24,
    "a storage without end": first_state(a=forge.tensor("0", HUGE, (HUGE,))),
    "a shape without end": first_state(a=forge.tensor("0", 4, (HUGE,))),
    "one number for all": first_state(a=forge.tensor("0", 4, (HUGE,), (0,))),
    "too many axes": first_state(a=forge.tensor("0", 4, (1,) * 17)),
    "a step too many": first_state(a=forge.tensor("0", 4, (4,), (1, 1))),
    "a negative size": first_state(a=forge.tensor("0", 4, (-1, -4))),
    "an offset without end": first_state(a=forge.tensor("0", 4, (4,), offset=2**99)),
    "a storage twice": first_state(
        a=forge.tensor("0", 4, (4,)), b=forge.tensor("0", 4, (4,), kind="IntStorage")
    ),
    "no type of number": first_state(a=forge.tensor("0", 4, (4,), kind="Storage")),
    "a storage elsewhere": first_state(a=forge.tensor("../0", 4, (4,))),
    "not a number for a key": mapping(
        (text("model"), mapping((b"G\x7f\xf8" + bytes(6), forge.tensor("0", 4, (4,))))),
    ),
    "an array for a key": mapping((forge.tensor("0", 4, (4,)), number(1))),
    "a name beside tensors": first_state(a=forge.tensor("0", 4, (4,)), b=number(1)),
    "attributes of a class": name("argparse", "Namespace") + row(b"N", mapping(
        (text("__getattribute__"), name("torch", "Size")))) + b"b",
    "a method of a dict": call(name("collections", "OrderedDict")) + mapping(
        (text("items"), number(1)), (text("get"), number(1))) + b"b",
}  # fmt: skip


GET = b"j" + bytes(4)  # what was remembered first
PUT = b"r" + bytes(4)
MANY = b"(" + GET * 1000 + b"t"
LONG = "a" * 7_000_000


def repeated(start, step, size=2**23):
    """A pickle of at most 8 MB: a start, and a step as often as it fits."""
    return start + step * ((size - len(start)) // len(step))


def large_dict(keys):
    return b"}" + PUT + b"(" + b"".join(key + b"N" for key in keys) + b"u"


def one_key_for_all(dicts=10_000):
    """Dicts that share one long key and one tensor."""
    start = text("k" * 4_000_000) + PUT + b"0" + forge.tensor("0", 4, (4,)) + b"q\1"
    items = (text(f"d{index}") + b"}" + GET + b"h\1s" for index in range(dicts))
    return start + b"}(" + b"".join(items) + b"u"


def many_keys_of_one_tensor(count=200_000):
    """A state dict whose shapes take far more characters than its file has bytes."""
    shape = (0,) + (2**63 - 1,) * 15
    keys = (text(str(index)) + b"h\1" for index in range(count))
    return mapping(
        (text("model"), mapping(
            (text("blocks.0.attn.qkv.weight"), forge.tensor("0", 4, shape, shape)
             + b"q\1", *keys))),
    )  # fmt: skip


def endless_arguments(state, name):
    """Training arguments that are to be printed: one long text, many times."""
    items = [
        (text(key), forge.tensor(str(index), array.size, array.shape))
        for index, (key, array) in enumerate(state.items())
    ]
    value = b"](" + text(LONG) + PUT + GET * 100 + b"e"
    arguments = mapping((text(name), value))
    return mapping((text("model"), mapping(*items)), (text("args"), arguments))


ORDERED = name("collections", "OrderedDict")
ARGUMENTS = forge.tensor("0", 4, (1,) * 64)[:-1]  # all of a tensor but its call
# 8 MB at most, which took up to a hundred seconds or gigabytes of a plain reader
LARGE_BOMBS = {
    "copies of a dict": repeated(
        large_dict(text(str(key)) for key in range(100_000)) + b"0" + ORDERED + b"q\1"
        + b"0(" + GET + b"tq\2",
        b"h\1h\2R",
        2**20,
    ),
    "copies of a list of pairs": repeated(
        b"]" + PUT + b"(" + (text("a") + b"N\x86") * 50_000 + b"e\x85q\2"
        + ORDERED + b"q\1",
        b"h\1h\2R",
        2**20,
    ),
    "copies of sizes": repeated(
        b"(" + b"K\1" * 100_000 + b"t" + PUT + b"\x85q\2" + name("torch", "Size")
        + b"q\1",
        b"h\1h\2R",
        2**20,
    ),
    "copies of attributes": repeated(
        large_dict(text(str(key)) for key in range(100_000))
        + name("argparse", "Namespace") + b")R",
        GET + b"b",
        2**20,
    ),
    "numbers that share a hash": large_dict(
        number(index * (2**61 - 1)) for index in range(40_000)
    ),
    "tuples that share a hash": large_dict(
        number(index * (2**61 - 1)) + b"\x85" for index in range(40_000)
    ),
    "instructions": repeated(b"", b"N0"),
    "marks": repeated(b"", b"("),
    "lists": repeated(b"", b"]"),
    "numbers": repeated(b"(", b"K\1"),
    "remembered numbers": repeated(b"", b"N\x940"),
    "names": repeated(b"", name("a", "b")),
    "tuples of a thousand": repeated(b"N" + PUT + MANY, MANY),
    "forged tensors": repeated(
        ARGUMENTS.removeprefix(forge.REBUILD) + b"q\2" + forge.REBUILD + b"q\1",
        b"h\1h\2R",
    ),
    "sizes of two thousand bits": first_state(
        a=forge.tensor("0", 4, (2**2000,) * 64, (1,) * 64)
    ),
    "a storage with a long name": first_state(a=forge.tensor(LONG, 4, (4,))),
    "a tensor with a long name": first_state(**{LONG: forge.tensor("0", 4, (4,))}),
    "names made of a long key": mapping(
        (text(LONG[:4_000_000]), mapping(*((text(f"a{i}"), b"N") for i in range(9999))))
    ),
    "dicts that share a long key": one_key_for_all(),
    "a state dict of one tensor": many_keys_of_one_tensor(),
    "a class with a long name": name("a" * 7_000_000, "b"),
    "a text that is too long": b"".join([text(LONG)] * 11),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bomb", LARGE_BOMBS)
def test_files_of_a_few_megabytes_are_refused_in_time(bomb, tmp_path, model):
    content, numbers = program(LARGE_BOMBS[bomb]), {"0": np.zeros(4, "float32")}
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, numbers))


@pytest.mark.parametrize("argument", ["num_heads", "input_size", "norm_pix_loss"])
def test_long_arguments_are_not_printed(argument, state, tmp_path, model):
    content = program(endless_arguments(state, argument))
    refuse(
        model, forge.write_zip(tmp_path / "x.pth", content, forge.storages_of(state))
    )


@pytest.mark.slow
def test_several_pickles_are_counted_together(tmp_path, model):
    steps = program(repeated(b"", b"N0", 2**19)[:-2] + b"}")
    path = tmp_path / "model.pth"
    path.write_bytes(program(number(forge.MAGIC)) + steps * 16)
    refuse(model, path)


@pytest.mark.parametrize("bomb", BOMBS)
def test_few_bytes_don_t_become_many(bomb, tmp_path, model):
    content, numbers = program(BOMBS[bomb]), {"0": np.zeros(4, "float32")}
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, numbers))


def test_one_tensor_of_many_names_is_refused(tmp_path, model):
    names = (text(f"blocks.{number}.") for number in range(50_000))
    put, get = b"q\1", b"h\1"
    first = (text("blocks.0."), forge.tensor("0", 0, (0,)) + put)
    state = mapping(first, *((name, get) for name in names))
    content = program(mapping((text("model"), state)))
    path = forge.write_zip(tmp_path / "model.pth", content, {"0": np.zeros(0)})
    refuse(model, path)
