"""What schemathesis cannot know of our document: what an image is, and an address of one."""

import base64
import struct
import zlib

import schemathesis
from hypothesis import strategies as st


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    rows = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


images = st.builds(png, st.integers(1, 16), st.integers(1, 16))
schemathesis.openapi.media_type("image/png", images)
schemathesis.openapi.format(
    "image-address",
    st.one_of(
        st.sampled_from(["s3://bucket/a.png", "https://shop.example/shirt.png"]),
        images.map(lambda image: "data:image/png;base64," + base64.b64encode(image).decode()),
    ),
)
