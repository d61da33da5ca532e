"""Command-line client of a served model: features, reconstructions, classes.

Run: python serving/client.py features cat.jpg --address=localhost:8501

Speaks TF Serving's REST or gRPC protocol. It needs the folder `mae_client` beside it,
NumPy, Pillow and urllib3; --grpc needs `tensorflow-serving-api`.
"""

import argparse
import contextlib
import os
import sys

import numpy as np

from mae_client import Client, ServingError


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # one line: argparse would print the whole usage before it
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parse(argv):
    """Reads the command line; a wrong one ends the process with exit code 2."""
    every = _Parser(add_help=False)
    every.add_argument("--grpc", action="store_true", help="use gRPC instead of REST")
    every.add_argument(
        "--address",
        help="HOST:PORT; default: localhost:8501, :8500 for --grpc",
    )
    every.add_argument("--model", default="mae", help="model name on the server")
    which = every.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="model version; default: the newest")
    which.add_argument("--label", help="version label, such as stable")
    every.add_argument(
        "--timeout", type=float, default=60, help="seconds per request; default: 60"
    )
    images = _Parser(add_help=False)
    images.add_argument("images", nargs="+", help="image files")
    parser = _Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (
        ("features", "encoder features of images, as arrays"),
        ("classify", "most likely classes of images"),
    ):
        command = commands.add_parser(name, parents=[every, images], help=does)
        command.add_argument("--out", help=".npz file to write the arrays to")
    does = "mask patches of images and reconstruct them"
    command = commands.add_parser("reconstruct", parents=[every, images], help=does)
    masking = command.add_mutually_exclusive_group()
    masking.add_argument(
        "--seed", type=int, help="random seed of the first image's mask; default: 0"
    )
    masking.add_argument("--mask", help=".npy file, (L,) or (B, L), 1 = masked")
    command.add_argument("--out", help="picture file to write, one row per image")
    commands.add_parser("status", parents=[every], help="states of model versions")
    commands.add_parser("metadata", parents=[every], help="signatures of the model")
    return parser.parse_args(argv)


def _features(client, options):
    features = client.features(options.images).features
    yield f"features: shape {features.shape}, float32"
    for path, values in zip(options.images, features, strict=True):
        first = " ".join(f"{value:.4f}" for value in values.ravel()[:4])
        yield f"{path}: mean {values.mean():.4f}, std {values.std():.4f}, {first} ..."
    yield from _save_arrays(options.out, features=features)


def _classify(client, options):
    answer = client.classify(options.images)
    columns = (answer.probabilities, answer.class_ids, answer.labels)
    for path, *rows in zip(options.images, *columns, strict=True):
        yield path
        for probability, class_id, label in zip(*rows, strict=True):
            yield f"  {probability:.4f}  {class_id:5}  {label}"
    yield from _save_arrays(options.out, **vars(answer))


def _save_arrays(path, **arrays):
    if path:
        # an open file: np.savez would add .npz to another name
        with open(path, "wb") as file:
            np.savez(file, **arrays)
        yield f"Arrays saved to {path}"


def _reconstruct(client, options):
    mask = None if options.mask is None else _read_mask(options.mask)
    answer = client.reconstruct(options.images, seed=options.seed, mask=mask)
    for path, row, loss in zip(options.images, answer.mask, answer.loss, strict=True):
        masked = f"{int(row.sum())} of {len(row)} patches masked"
        yield f"{path}: loss {loss:.4f}, {masked}"
    if options.out:
        answer.save(options.out, options.images)
        yield f"Picture saved to {options.out}"


def _read_mask(path):
    try:
        return np.load(path)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"--mask must be a .npy file. Received: {path}: {error}"
        ) from error


def _status(client, _):
    for version, state, error in client.status():
        yield f"version {version}: {state} {error}".rstrip()


def _metadata(client, _):
    for name, signature in client.metadata().items():
        yield name
        for way, infos in zip(("in", "out"), signature, strict=True):
            for key, info in infos.items():
                yield f"  {way:3}  {key}  {info.dtype} {_sizes(info.shape)}"


def _sizes(shape):
    if shape is None:
        return "of any shape"
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


_COMMANDS = {
    "features": _features,
    "classify": _classify,
    "reconstruct": _reconstruct,
    "status": _status,
    "metadata": _metadata,
}


def main(argv=None):
    """Runs the command line; errors are one line on standard error.

    Exit codes: 1 for errors of the server, 2 for wrong flags or files, 141 if the
    reader of standard output has closed it.
    """
    options = _parse(argv)
    names = ("address", "model", "version", "label", "grpc", "timeout")
    try:
        with _quiet_stderr() if options.grpc else contextlib.nullcontext():
            client = Client(**{name: getattr(options, name) for name in names})
        with client:
            # all lines before the first is printed: files are written in any case
            lines = list(_COMMANDS[options.command](client, options))
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        # Python flushes standard output again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell reports SIGPIPE
    except ServingError as error:
        _fail(f"{error.code}: {error}", 1)
    except (ValueError, OSError, ImportError) as error:
        _fail(error, 2)


@contextlib.contextmanager
def _quiet_stderr():
    """Silences file descriptor 2, where TensorFlow logs while it is imported."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _fail(error, code):
    line = " ".join(str(error).split())
    print(f"{sys.argv[0]}: error: {line}", file=sys.stderr)
    sys.exit(code)


def cli():
    """Runs the command line."""
    main()


if __name__ == "__main__":
    cli()
