"""Flags: every kind of field, and one line for every error."""

import dataclasses

import pytest
import tensorflow as tf

from keras_mae.utils import flags


@dataclasses.dataclass
class Config:
    name: str
    epochs: int = dataclasses.field(default=3, metadata={"help": "how long"})
    rate: float = 0.5
    size: int | None = None
    fast: bool = False
    kind: str = dataclasses.field(default="a", metadata={"choices": ("a", "b")})


def test_every_kind_of_field():
    argv = ["--name=x", "--epochs", "5", "--rate=1e-3", "--size=7", "--fast"]
    argv += ["--kind", "b"]
    config = flags.parse_flags(Config, "Does.", argv)
    assert config == Config("x", 5, 1e-3, 7, True, "b")
    assert flags.parse_flags(Config, "Does.", ["--name=x"]) == Config("x")


@pytest.mark.parametrize(
    "argv",
    [[], ["--name=x", "--epochs=many"], ["--name=x", "--kind=c"], ["--name", "--no"]],
)
def test_wrong_flags_end_in_one_line_and_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse_flags(Config, "Does.", argv)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_flags_of_ints():
    assert flags.parse_ints("sizes", "1, 8 2") == [1, 8, 2]
    for text in ("1,x", "", "0", "-1,2", "1.5"):
        with pytest.raises(
            ValueError, match="sizes must be ints of at least 1, such as"
        ):
            flags.parse_ints("sizes", text)


def test_a_flag_instead_of_another(tmp_path, capsys):
    @dataclasses.dataclass
    class Both:
        ratio: float | None = None
        schedule: str | None = flags.flag("changes", None, instead_of="ratio")
        config: str | None = None

    with pytest.raises(SystemExit):
        flags.parse_flags(Both, "", ["--ratio=0.5", "--schedule=a"])
    assert "Give one of --ratio and --schedule" in capsys.readouterr().err
    path = tmp_path / "config.json"
    path.write_text('{"ratio": 0.75, "schedule": "a"}')
    both = flags.parse_flags(Both, "", [f"--config={path}"])
    assert (both.ratio, both.schedule) == (0.75, "a")
    for given, wanted in (("ratio=0.5", (0.5, None)), ("schedule=b", (None, "b"))):
        one = flags.parse_flags(Both, "", [f"--config={path}", f"--{given}"])
        assert (one.ratio, one.schedule) == wanted


def test_a_recipe_beside_a_file_replaces_the_values_of_the_file_s(tmp_path):
    recipes = {"base": {"epochs": 100, "blr": 0.5}, "large": {"epochs": 50, "blr": 1.0}}

    @dataclasses.dataclass
    class Recipe:
        recipe: str = flags.flag("values of", "base", fills=recipes)
        epochs: int | None = None
        blr: float | None = None
        config: str | None = None

    def parse(*argv):
        got = flags.parse_flags(Recipe, "", [f"--config={path}", *argv])
        return got.recipe, got.epochs, got.blr

    path = tmp_path / "config.json"
    # as runs save it: the recipe's epochs, and a rate of their own
    path.write_text('{"recipe": "base", "epochs": 100, "blr": 0.25}')
    assert parse() == ("base", 100, 0.25)
    assert parse("--epochs=7") == ("base", 7, 0.25)
    assert parse("--recipe=large") == ("large", None, 0.25)
    assert parse("--recipe=large", "--epochs=100") == ("large", 100, 0.25)
    path.write_text('{"recipe": "large", "epochs": 50, "blr": 1.0}')
    assert parse("--recipe=base") == ("base", None, None)  # the default, but given
    path.write_text('{"epochs": 9}')
    assert parse("--recipe=large") == ("large", 9, None)


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("wanted this\n  received that"), 2),
        (OSError("no room"), 2),
        (FloatingPointError("the loss is nan"), 3),
        (tf.errors.DataLossError(None, None, "corrupted record at 9"), 2),
    ],
)
def test_errors_of_a_script_end_in_one_line(error, code, capsys):
    def main(config):
        raise error

    with pytest.raises(SystemExit) as stop:
        flags.run_script(main, Config, "Does.", ["--name=x"])
    assert stop.value.code == code
    line = capsys.readouterr().err.splitlines()
    assert len(line) == 1 and line[0].endswith(" ".join(str(error).split()))


def test_bugs_keep_their_traceback():
    def main(config):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        flags.run_script(main, Config, "Does.", ["--name=x"])


@dataclasses.dataclass
class Saved:
    config: str | None = None
    epochs: int = 1
    rate: float = 0.5
    fast: bool = True
    size: int | None = None


def test_flags_come_from_a_file_and_the_command_line_wins(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"epochs": 5, "rate": 0.25, "fast": false, "size": null}')
    got = flags.parse_flags(Saved, "Does.", [f"--config={path}", "--rate=2"])
    assert got == Saved(str(path), 5, 2.0, False, None)


def test_hyphens_and_underscores_are_one():
    @dataclasses.dataclass
    class Two:
        dry_run: bool = True
        log_file: str = "a"

    for argv in (
        ["--no-dry-run", "--log-file=b-c_d"],
        ["--no-dry_run", "--log_file=b-c_d"],
    ):
        assert flags.parse_flags(Two, "Does.", argv) == Two(False, "b-c_d")


@pytest.mark.parametrize("text", ['{"speed": 1}', '{"epochs": "x"}', "[1]", "{"])
def test_a_wrong_config_file_ends_in_one_line_and_code_2(text, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        flags.parse_flags(Saved, "Does.", [f"--config={path}"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell expands it only where a word begins with it: not in --out=~/x."""

    @dataclasses.dataclass
    class Paths:
        source: str = flags.flag("from", positional=True)
        out: str = "runs"
        labels: str | None = None
        config: str | None = None
        dataset: str = "folder:~/photos"

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags.json").write_text('{"labels": "~/names.txt", "out": "a/~/b"}')
    got = flags.parse_flags(Paths, "Does.", ["~/in", "--config=~/flags.json"])
    home = f"{tmp_path}/"
    assert got == Paths(f"{home}in", "a/~/b", f"{home}names.txt", f"{home}flags.json")
    got = flags.parse_flags(Paths, "Does.", ["~x", "--out=~/models"])
    assert (got.source, got.out) == ("~x", f"{home}models")


def test_scripts_tune_malloc_before_they_begin(monkeypatch):
    calls = []
    monkeypatch.setattr("keras_mae.utils.flags.tune_malloc", lambda: calls.append(0))
    flags.run_script(lambda config: calls.append(1), Saved, "Does.", [])
    assert calls == [0, 1]
