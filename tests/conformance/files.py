"""PNG and safetensors by the standard library alone: stored references are compared where there is neither torch nor Pillow."""

import json
import struct
import zlib


def png_pixels(data):
    """(width, height, bytes of RGB) of a PNG as the binary writes it: eight bits, three channels, not interlaced."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", chunk)
            assert form == [8, 2, 0, 0, 0], f"another form of PNG: {form}"
        elif kind == b"IDAT":
            packed += chunk
        at += size + 12
    raw, row, rows = zlib.decompress(packed), width * 3, []
    above = bytes(row)
    for y in range(height):
        start = y * (row + 1)
        above = unfiltered(raw[start], raw[start + 1 : start + 1 + row], above)
        rows.append(above)
    return width, height, b"".join(rows)


def unfiltered(kind, line, above):
    """One row: RFC 2083, chapter 6."""
    if kind == 0:
        return line
    done = bytearray(line)
    for x, value in enumerate(line):
        left, up, corner = (done[x - 3], above[x], above[x - 3]) if x >= 3 else (0, above[x], 0)
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        else:
            whole = left + up - corner
            guess = min((left, up, corner), key=lambda near, whole=whole: abs(whole - near))
        done[x] = (value + guess) & 255
    return bytes(done)


def every_second(width, height, rgb):
    """Of every second row every second pixel, which is what the references keep."""
    rows = [rgb[y * width * 3 : (y + 1) * width * 3] for y in range(0, height, 2)]
    return b"".join(row[x : x + 3] for row in rows for x in range(0, width * 3, 6))


def write_tensors(path, tensors):
    """Tensors of bytes, each with its shape, as a safetensors file."""
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


def read_tensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (header[name]["shape"], data[8 + size + start : 8 + size + end]) for name, (start, end) in spans.items()}
