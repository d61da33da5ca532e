"""Command-line client of a served model: features, similar images, reconstructions.

Run: python serving/client.py features cat.jpg --address=localhost:8501

Speaks TF Serving's REST or gRPC protocol. It needs the folder `mae_client` beside it,
NumPy, Pillow and httpx2; --grpc needs grpcio and protobuf.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from mae_client import Client, ServingError
from mae_client.contact_sheet import draw_sheet
from mae_client.flags import client_arguments, parse
from mae_client.similar import ImageIndex, check_writable, index_folder


def _features(client, options):
    features = client.features(options.images).features
    yield f"features: shape {features.shape}, float32"
    for path, values in zip(options.images, features, strict=True):
        first = " ".join(f"{value:.4f}" for value in values.ravel()[:4])
        yield f"{path}: mean {values.mean():.4f}, std {values.std():.4f}, {first} ..."
    yield from _save_arrays(options.out, features=features)


def _embed(client, options):
    embedding = client.embed(options.images).embedding
    yield f"embedding: shape {embedding.shape}, float32"
    for path, vector in zip(options.images, embedding, strict=True):
        first = " ".join(f"{value:.4f}" for value in vector[:4])
        yield f"{path}: length {np.linalg.norm(vector):.4f}, {first} ..."
    yield from _save_arrays(options.out, embedding=embedding)


def _index(client, options):
    out, folder, skipped = Path(options.out), Path(options.folder), []
    for place in (folder, out.parent):
        if not place.is_dir():
            raise NotADirectoryError(f"There is no folder {place}")
    check_writable(out)
    old = _index_to_renew(options)

    def skip(path, error):
        skipped.append(path)
        # a name may hold bytes that are no text
        shown = path.encode(errors="replace").decode()
        print(f"skipped {shown}: {_line(error)}", file=sys.stderr)

    version = client.answering_version()

    def save(arrays):
        # of real paths: links are followed before `..`
        relative = os.path.relpath(folder.resolve(), out.parent.resolve())
        ImageIndex(*arrays, options.model, version, relative).save(out)

    def keep(arrays):
        if known is not old:
            told = f"kept nothing new; {out} stays as it was, of version {old.version}"
        else:
            save(arrays)
            told = f"kept {len(arrays[0])} images in {out}; run again for the rest"
        print(told, file=sys.stderr)

    known = old if old is not None and old.version == version else None
    with _pinned(options, version) as client:
        arrays = index_folder(client, folder, known, skip, keep)
    count = len(arrays[0])
    if not count:
        raise ValueError(f"{folder} has no image that can be read")
    save(arrays)
    yield f"{count} images of {folder}, {len(skipped)} skipped; saved to {out}"


def _index_to_renew(options):
    """Returns the index that --out has, or None; it must be of the same images."""
    if not os.path.exists(options.out):
        return None
    old = ImageIndex.load(options.out)
    folder = _folder_of(options.out, old)
    if old.model != options.model or not _is_same(folder, Path(options.folder)):
        raise ValueError(
            f"{options.out} is the index of {folder} by model {old.model}; give "
            f"another --out. Received: {options.folder}, model {options.model}"
        )
    return old


def _similar(client, options):
    if options.top < 1:
        raise ValueError(f"--top must be at least 1. Received: {options.top}")
    index = ImageIndex.load(options.index)
    version = client.answering_version()
    index.check(options.index, options.model, version)
    folder = _folder_of(options.index, index)
    with _pinned(options, version) as client:
        (embedding,) = client.embed(options.image).embedding
        index.check_embeddings(options.index, client, folder, embedding)
    # an image is most similar to itself
    image = Path(options.image)
    # a link keeps its name: the index has it under that
    place = os.path.relpath(image.parent.resolve() / image.name, folder)
    itself = Path(place).as_posix()
    found = index.rank(embedding, options.top, without=itself)
    for path, score in found:
        yield f"{score:.4f}  {path}"
    if not found:
        yield f"{options.index} has no other image"
    if options.out:
        draw_sheet(options.image, found, folder).save(options.out)
        yield f"Picture saved to {options.out}"


def _pinned(options, version):
    """Returns a client of one version: a newer one must not answer half of a folder."""
    return Client(**client_arguments(options) | {"version": version, "label": None})


def _folder_of(path, index):
    """Returns the real path of the folder that an index was made of."""
    return Path(path).resolve().parent.joinpath(index.folder).resolve()


def _is_same(one, other):
    return one.exists() and other.exists() and one.samefile(other)


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
    if options.png_folder is not None:
        yield from _reconstruct_png(client, options)
        return
    mask = None if options.mask is None else _read_mask(options.mask)
    answer = client.reconstruct(options.images, seed=options.seed, mask=mask)
    for path, row, loss in zip(options.images, answer.mask, answer.loss, strict=True):
        masked = f"{int(row.sum())} of {len(row)} patches masked"
        yield f"{path}: loss {loss:.4f}, {masked}"
    if options.out:
        answer.save(options.out, options.images)
        yield f"Picture saved to {options.out}"


def _reconstruct_png(client, options):
    for name in ("mask", "out"):
        if getattr(options, name) is not None:
            raise ValueError(f"Give either --png_folder or --{name}")
    folder = Path(options.png_folder)
    # a name of its own: the folder may be that of the images
    names = [f"{Path(path).stem}-reconstruction.png" for path in options.images]
    made_of = {}
    for name, path in zip(names, options.images, strict=True):
        if name in made_of:
            raise ValueError(
                "--png_folder needs images of different names, endings aside. "
                f"Received: {made_of[name]} and {path}, both for {name}"
            )
        made_of[name] = path
    answer = client.reconstruct_png(options.images, seed=options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, png, loss in zip(names, answer.png_bytes, answer.loss, strict=True):
        (folder / name).write_bytes(png)
        yield f"{folder / name}: loss {loss:.4f}"


def _read_mask(path):
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file)
    except ValueError as error:
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
    "embed": _embed,
    "index": _index,
    "similar": _similar,
    "classify": _classify,
    "reconstruct": _reconstruct,
    "status": _status,
    "metadata": _metadata,
}


def main(argv=None):
    """Runs the command line; errors are one line on standard error."""
    options = parse(argv, __doc__.splitlines()[0])
    try:
        with Client(**client_arguments(options)) as client:
            # all lines before the first is printed: files are written in any case
            lines = list(_COMMANDS[options.command](client, options))
        print(*lines, sep="\n", flush=True)
    except KeyboardInterrupt as error:
        # as a shell reports a signal
        (number,) = error.args or (signal.SIGINT,)
        sys.exit(128 + number)
    except BrokenPipeError:
        # Python flushes standard output again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell reports SIGPIPE
    except ServingError as error:
        _fail(f"{error.code}: {error}", 1)
    except (ValueError, OSError, ImportError) as error:
        _fail(error, 2)


def _line(error):
    return " ".join(str(error).split())


def _fail(error, code):
    print(f"{sys.argv[0]}: error: {_line(error)}", file=sys.stderr)
    sys.exit(code)


def _interrupt(number, _):
    raise KeyboardInterrupt(number)


def cli():
    """Runs the command line; SIGTERM and SIGHUP end it as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # nohup has it ignored
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        main()
    except SystemExit as end:
        if end.code in (129, 130, 143):
            # Python would wait for a thread that is still connecting
            os._exit(end.code)
        raise


if __name__ == "__main__":
    cli()
