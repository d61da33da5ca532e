"""EXIF orientation of an encoded image, and turning an image upright.

`keras_mae/data/exif_orientation.py` does the same in a graph. Both read tag 0x0112 of
the first image file directory, of type SHORT, in a JPEG's first APP1 segment of EXIF,
a PNG's first chunk eXIf or a WebP's first chunk EXIF. All else is orientation 1,
upright: no such tag, a value outside [1, 8], a file that is malformed up to there.
`PIL.ImageOps.exif_transpose` takes more for an orientation (XMP, other types), and
raises errors: a served model could not agree with it on each file.
"""

import struct

from PIL import Image

# segments or chunks that are looked at: in a graph each takes its time
MOST_PARTS = 10_000
_TAG, _SHORT = 0x0112, 3
_PREFIX = b"Exif\0\0"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turns or mirrors an image so that orientation 1 to 8 is upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def orientation_of_file(encoded: bytes) -> int:
    """Reads the orientation of an encoded image: 1 to 8."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return orientation_of_exif(_jpeg_exif(encoded))
    if encoded.startswith(b"\x89PNG"):
        return orientation_of_exif(_chunk(encoded, 8, ">I", b"eXIf", 4, 12, 1))
    if encoded[8:12] == b"WEBP":
        return orientation_of_exif(_chunk(encoded, 12, "<I", b"EXIF", 0, 8, 2))
    return 1


def orientation_of_exif(exif: bytes) -> int:
    """Reads the orientation of a block of EXIF: 1 to 8."""
    exif = exif.removeprefix(_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (begin,) = struct.unpack_from(f"{order}I", exif, 4)
    if begin + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, begin)
    for place in range(begin + 2, min(begin + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
        if tag == _TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def _jpeg_exif(encoded):
    """Finds the first APP1 segment of EXIF, before the first scan."""
    place = 2
    for _ in range(MOST_PARTS):
        if encoded[place : place + 1] != b"\xff" or place + 4 > len(encoded):
            break
        marker, length = struct.unpack_from(">BH", encoded, place + 1)
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        content = encoded[place + 4 : place + 2 + length]
        if marker == 0xE1 and content.startswith(_PREFIX):
            return content
        if marker in (0xD9, 0xDA) or length < 2:  # the end, or a scan
            break
        place += 2 + length
    return b""


def _chunk(encoded, place, length_format, name, name_at, frame, even):
    """Finds the first chunk of a name; `frame` bytes of each are not content."""
    for _ in range(MOST_PARTS):
        if place + 8 > len(encoded):
            break
        (length,) = struct.unpack_from(length_format, encoded, place + 4 - name_at)
        begin = place + 8
        if encoded[place + name_at : place + name_at + 4] == name:
            return encoded[begin : begin + length]
        place += frame + -(-length // even) * even
    return b""
