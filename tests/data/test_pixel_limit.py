"""Images that announce too many pixels are refused by their headers, undecoded."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae.data.decoding import decode


def encode(mode, kind, **options):
    file = io.BytesIO()
    Image.new(mode, (100, 50)).save(file, kind, **options)
    return file.getvalue()


def animated_webp():
    frames = [Image.new("RGBA", (10, 50), (25 * n, 0, 0, 99)) for n in range(10)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


IMAGES = {
    "png": encode("RGB", "PNG"),
    "jpeg": encode("RGB", "JPEG"),
    "progressive jpeg": encode("RGB", "JPEG", progressive=True),
    "gif": encode("P", "GIF"),
    "bmp": encode("RGB", "BMP"),
    "webp": encode("RGB", "WEBP"),
    "webp without loss": encode("RGB", "WEBP", lossless=True),
    "webp with alpha": encode("RGBA", "WEBP", exif=b"Exif\0\0"),
    "animated webp": animated_webp(),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_limit_holds_to_the_pixel(name):
    content = tf.constant(IMAGES[name])
    pixels = {"animated webp": 500}.get(name, 5000)
    assert tf.size(decode(content, 5000)) == 3 * pixels
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 4999 pixels"):
        decode(content, 4999)


def announcing(width, height):
    """Returns files that announce a size, and hold next to nothing."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    def riff(name, content):
        content = name + struct.pack("<I", len(content)) + content
        return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content

    png = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    bits = (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14
    large = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    jpeg = bytearray(IMAGES["jpeg"])
    sizes_at = jpeg.index(b"\xff\xc0") + 5
    jpeg[sizes_at : sizes_at + 4] = struct.pack(">HH", height, width)
    small = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    sizes = struct.pack("<III", 0, 54, 40) + struct.pack("<ii", width, -height)
    return {
        "png": b"\x89PNG\r\n\x1a\n" + png + chunk(b"IDAT", zlib.compress(b"\0" * 99)),
        "jpeg": bytes(jpeg),
        "bmp": b"BM\0\0\0\0" + sizes + struct.pack("<HH", 1, 24) + b"\0" * 24,
        "webp": riff(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + small),
        "webp without loss": riff(b"VP8L", b"\x2f" + struct.pack("<I", bits) + b"\0"),
        "large webp": riff(b"VP8X", b"\0" * 4 + large),
    }


@pytest.mark.parametrize("name", announcing(1, 1))
def test_headers_are_read_before_memory_is_taken(name):
    content = announcing(16_000, 16_000)[name]
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 50000000 pixels"):
        decode(tf.constant(content), 50_000_000)


def test_a_webp_without_a_known_first_chunk_is_refused():
    content = announcing(9, 9)["webp"].replace(b"VP8 ", b"ALPH")
    with pytest.raises(tf.errors.InvalidArgumentError, match="first chunk"):
        decode(tf.constant(content))


def test_a_webp_starts_with_riff():
    """Bytes that hold WEBP elsewhere are another format's, whose header is unread."""
    content = b"\x10\0\0\x9d\x01\x2a\xff\x3fWEBP" + bytes(np.arange(99, dtype="uint8"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image"):
        decode(tf.constant(content))
