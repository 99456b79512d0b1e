"""OpenAI's own Python client against a host: generates, edits, streams, is refused, repeats. usage: openai_images.py URL TOKEN"""

import base64
import io
import struct
import sys
import urllib.request
import zlib

import openai


def png(width, height, pixel):
    """A PNG in RGBA whose pixel at (x, y) is `pixel(x, y)`."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes(pixel(x, y)) for x in range(width)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def file(name, data):
    handle = io.BytesIO(data)
    handle.name = name
    return handle


def is_png(data):
    return base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n\x1a\n")


def pixels(encoded):
    """The compressed pixels of a PNG; its text chunks name the job."""
    data, at, found = base64.b64decode(encoded), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        found += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    return found


def refused(kind, call, param, says):
    try:
        call()
    except kind as error:
        assert error.param == param and says in error.message, (error.param, error.message)
        return error
    raise AssertionError(f"{says!r} was not refused")


url, token = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=token)
prompt = "a red mug on the beach"

assert [model.id for model in client.models.list()] == ["tiny-sd"]
assert client.models.retrieve("tiny-sd").object == "model"

made = client.images.generate(model="tiny-sd", prompt=prompt, n=2, quality="low")
assert len(made.data) == 2 and all(is_png(image.b64_json) for image in made.data)
assert made.data[0].b64_json != made.data[1].b64_json
assert (made.size, made.output_format, made.quality) == ("128x128", "png", "low"), made.size

# The seed makes it the same image; without one every request has another.
def small(**more):
    return client.images.generate(prompt=prompt, size="64x64", extra_body={"steps": 2} | more).data[0].b64_json


assert pixels(small(seed=7)) == pixels(small(seed=7))
assert pixels(small()) != pixels(small())
key = {"Idempotency-Key": "the-same-order"}
again = [
    client.images.generate(prompt=prompt, size="64x64", extra_body={"steps": 2}, extra_headers=key).data[0].b64_json
    for _ in range(2)
]
assert again[0] == again[1]
refused(
    openai.ConflictError,
    lambda: client.images.generate(prompt="a blue cup", size="64x64", extra_headers=key),
    None,
    "another request",
)

address = client.images.generate(prompt=prompt, response_format="url", output_format="webp", extra_body={"steps": 2}).data[0].url
with urllib.request.urlopen(address) as answer:
    assert answer.read(4) == b"RIFF"

person = png(128, 96, lambda x, y: (200, x, y, 255))
hole = png(128, 96, lambda x, y: (0, 0, 0, 0 if x < 64 else 255))
edited = client.images.edit(image=file("a.png", person), mask=file("m.png", hole), prompt=prompt, quality="low", extra_body={"seed": 1})
assert is_png(edited.data[0].b64_json) and edited.size == "144x112", edited.size

kinds = []
for event in client.images.generate(prompt=prompt, stream=True, partial_images=2, extra_body={"steps": 2}):
    kinds.append(event.type)
    assert is_png(event.b64_json)
assert kinds == ["image_generation.completed"], kinds
events = list(client.images.edit(image=[file("a.png", person)], prompt=prompt, stream=True, extra_body={"steps": 4}))
assert [event.type for event in events] == ["image_edit.completed"], events

error = refused(openai.BadRequestError, lambda: client.images.generate(prompt=prompt, size="100x100"), "size", "multiple of 8")
assert error.code == "invalid_request" and error.type == "invalid_request_error", error
refused(openai.NotFoundError, lambda: client.images.generate(prompt=prompt, model="gpt-image-1"), "model", "tiny-sd")
refused(openai.BadRequestError, lambda: client.images.generate(prompt=prompt, n=9), "n", "from 1 to 4")
opaque = png(128, 96, lambda x, y: (0, 0, 0, 255))
refused(
    openai.BadRequestError,
    lambda: client.images.edit(image=file("a.png", person), mask=file("m.png", opaque), prompt=prompt),
    "mask",
    "transparent",
)
stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="another token of 32 characters...")
refused(openai.AuthenticationError, lambda: stranger.images.generate(prompt=prompt), None, "Bearer TOKEN")
print("all of it")
