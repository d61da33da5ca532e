"""Flags of the command-line client."""

import argparse
import os
from typing import Any


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # one line: argparse would print the whole usage before it
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Reads the command line; a wrong one ends the process with exit code 2."""
    every = _every_command()
    images = _Parser(add_help=False)
    images.add_argument("images", nargs="+", help="image files")
    parser = _Parser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (
        ("features", "encoder features of images, as arrays"),
        ("embed", "embeddings of images, a vector each"),
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
    command.add_argument(
        "--png_folder",
        help="folder to write the server's PNG of each image to, instead of --out",
    )
    _add_similar(commands, every)
    commands.add_parser("status", parents=[every], help="states of model versions")
    commands.add_parser("metadata", parents=[every], help="signatures of the model")
    return parser.parse_args(argv)


def _every_command():
    """Flags of each command: the server, and how to reach it."""
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
    every.add_argument(
        "--gzip", action="store_true", help="compress what is sent (Content-Encoding)"
    )
    # second names as curl and grpcurl have them
    secure = every.add_argument_group("TLS and tokens")
    secure.add_argument(
        "--tls", action="store_true", help="https, or gRPC with TLS; without: plaintext"
    )
    secure.add_argument(
        "--ca_file", "--cacert", help="PEM file of certificates to trust"
    )
    secure.add_argument(
        "--cert_file", "--cert", help="PEM file: the client's certificate (mTLS)"
    )
    secure.add_argument("--key_file", "--key", help="PEM file: its private key")
    secure.add_argument(
        "--insecure", "-k", action="store_true", help="REST: don't verify the server"
    )
    secure.add_argument(
        "--token_env",
        metavar="NAME",
        help="environment variable with a token: Authorization: Bearer TOKEN",
    )
    secure.add_argument(
        "--header",
        "-H",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="further header, or metadata of gRPC; may be given again",
    )
    return every


def _add_similar(commands, every):
    does = "write the embeddings of a folder's images, for `similar`"
    command = commands.add_parser("index", parents=[every], help=does)
    command.add_argument("folder", help="folder of images, with those below it")
    command.add_argument(
        "--out",
        default="index.npz",
        help=".npz file; of one that is there, unchanged images are kept",
    )
    does = "rank the images of an index by similarity to an image"
    command = commands.add_parser("similar", parents=[every], help=does)
    command.add_argument("image", help="image file")
    command.add_argument("--index", default="index.npz", help=".npz file of `index`")
    command.add_argument(
        "--top", type=int, default=9, help="images to list; default: 9"
    )
    command.add_argument("--out", help="picture file to write, a contact sheet")


def client_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Client` that the flags give."""
    names = ("address", "model", "version", "label", "grpc", "timeout", "gzip", "tls")
    arguments = {name: getattr(options, name) for name in names}
    for name in ("ca_file", "cert_file", "key_file"):
        arguments[name] = getattr(options, name)
    arguments["verify"] = not options.insecure
    if options.token_env is not None:
        arguments["token"] = os.environ.get(options.token_env)
        if not arguments["token"]:
            raise ValueError(
                "--token_env must name a variable that is set. Received: "
                f"{options.token_env}"
            )
    headers = {}
    for line in options.header:
        name, colon, value = line.partition(":")
        if not colon:
            # not shown: it may hold a secret
            raise ValueError("--header must be 'Name: value'; one has no colon")
        headers[name.strip()] = value.strip()
    arguments["headers"] = headers
    return arguments
