"""Writes tests/fixtures/image-files: image files in every form, what Pillow makes of each, and what it does with those that are cut.

    python tests/oracle/make_image_files.py    at once; the result is committed

Needs Pillow and numpy; made with Pillow 13.0.0 (libjpeg-turbo 3.2.0, libwebp 1.6.0). `expected/NAME.png` holds a file's pixels as
`exif_transpose(image).convert("RGBA")` gives them; `refused.txt` names the files that Pillow does not open or load.
"""

import io
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

HERE = Path(__file__).resolve().parent.parent / "fixtures" / "image-files"
WIDTH, HEIGHT = 53, 37
ORIENTATION = 0x0112


def scene():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    red = 127 + 120 * np.sin(x / 7.0)
    green = 255 * y / HEIGHT
    blue = 255.0 * ((x // 9 + y // 6) % 2)
    return np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(value, kind=3, order="<", prefix=b""):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    stored = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    entries = struct.pack(order + "HHHI", 1, ORIENTATION, kind, 1) + stored
    return prefix + head + entries + b"\0\0\0\0"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def put_in(png, name, data, before=b"IDAT"):
    at = png.index(before) - 4
    return png[:at] + chunk(name, data) + png[at:]


def with_data(png, change):
    """The file with other compressed data, under its own checksum; Pillow writes one chunk."""
    at = png.index(b"IDAT")
    length = struct.unpack(">I", png[at - 4:at])[0]
    return png[:at - 4] + chunk(b"IDAT", change(png[at + 4:at + 4 + length])) + png[at + 8 + length:]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]


def adobe(transform):
    return b"\xff\xee" + struct.pack(">H", 14) + b"Adobe\0\x64\0\0\0\0" + bytes([transform])


def with_ids(jpeg, ids):
    """The file with other names for its components, in its frame and its scan."""
    out = bytearray(jpeg)
    frame = next(at for at in (jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) if at > 0)
    scan = jpeg.index(b"\xff\xda")
    for n, name in enumerate(ids):
        out[frame + 10 + 3 * n] = name
        out[scan + 5 + 2 * n] = name
    return bytes(out)


def riff(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_with_exif(image, block):
    lossless = encoded(image, "WEBP", lossless=True)
    flags = struct.pack("<I", 0x08) + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    return riff((b"VP8X", flags), (lossless[12:16], lossless[20:20 + struct.unpack("<I", lossless[16:20])[0]]), (b"EXIF", block))


def pngs(rgb):
    image = Image.fromarray(rgb)
    grey = Image.fromarray(rgb[:, :, 1])
    alpha = (255 - rgb[:, :, 2] // 2).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    plain = encoded(image, "PNG")
    noisy = encoded(Image.fromarray(np.random.default_rng(5).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)), "PNG")
    files = {
        "rgb": plain,
        "rgba": encoded(rgba, "PNG"),
        "grey": encoded(grey, "PNG"),
        "grey-alpha": encoded(Image.merge("LA", (grey, Image.fromarray(alpha))), "PNG"),
        "one-bit": encoded(image.convert("1"), "PNG"),
        "palette": encoded(image.quantize(13), "PNG"),
        "palette-transparent": encoded(image.quantize(200), "PNG", transparency=bytes(range(0, 200))),
        "key-transparent": encoded(image, "PNG", transparency=tuple(int(v) for v in rgb[3, 4])),
        "exif-6": encoded(image, "PNG", exif=exif(6)),
        "exif-5-long-big-endian": put_in(plain, b"eXIf", exif(5, 4, ">")),
        "exif-8-prefixed": put_in(plain, b"eXIf", exif(8, prefix=b"Exif\0\0")),
        "exif-3-behind-the-data": put_in(plain, b"eXIf", exif(3), b"IEND"),
        "no-end": plain[:-12],
        "end-cut": plain[:-5],
        "half": noisy[: len(noisy) // 2],
        "no-adler": with_data(plain, lambda data: data[:-4]),
        **{f"bit-{place}": with_data(noisy, lambda data, at=place: flipped(data, len(data) * at // 10)) for place in (2, 4, 6, 8)},
        "adler-of-another": with_data(plain, lambda data: flipped(data, len(data) - 1)),
        "bad-sum-before": plain.replace(b"IHDR", b"IHDR", 1)[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + plain[33:],
        "bad-sum-behind": plain[:-12] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + plain[-12:],
        "bad-profile": put_in(plain, b"iCCP", b"x\0\0not zlib"),
        "garbage-behind": plain + bytes(range(200)),
    }
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x><rdf:Description tiff:Orientation="7"/></x>')
    files["xmp-7"] = encoded(image, "PNG", pnginfo=xmp)
    raw = PngImagePlugin.PngInfo()
    raw.add_text("Raw profile type exif", "\nexif\n%8d\n" % len(exif(2)) + exif(2, prefix=b"Exif\0\0").hex() + "\n", zip=True)
    files["raw-profile-2"] = encoded(image, "PNG", pnginfo=raw)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    deep = (rgb.astype(">u2") * 256 + 200).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    files["rgb16"] = plain[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return {f"{name}.png": file for name, file in files.items()}


def jpegs(rgb):
    image = Image.fromarray(rgb)
    plain = encoded(image, "JPEG", quality=88)
    progressive = encoded(image, "JPEG", quality=88, progressive=True)
    files = {"plain": plain, "progressive": progressive, "grey": encoded(image.convert("L"), "JPEG")}
    for name, sampling in (("444", "4:4:4"), ("422", "4:2:2"), ("420", "4:2:0"), ("411", "4:1:1")):
        files[f"sampled-{name}"] = encoded(image, "JPEG", quality=92, subsampling=sampling)
        files[f"sampled-{name}-progressive"] = encoded(image, "JPEG", quality=92, subsampling=sampling, progressive=True)
    for blocks in (1, 3):
        files[f"restarts-{blocks}"] = encoded(image, "JPEG", restart_marker_blocks=blocks)
        files[f"restarts-{blocks}-progressive"] = encoded(image, "JPEG", restart_marker_blocks=blocks, progressive=True)
    files["cmyk"] = encoded(image.convert("CMYK"), "JPEG", quality=95)
    full = encoded(image, "JPEG", quality=92, subsampling="4:4:4")
    bare = full[:2] + full[20:]  # without JFIF's segment
    files["jfif-and-adobe-0"] = full[:20] + adobe(0) + full[20:]
    files["jfif-and-ids-rgb"] = with_ids(full, b"RGB")
    files["adobe-0"] = bare[:2] + adobe(0) + bare[2:]
    files["adobe-1-and-ids-rgb"] = with_ids(bare[:2] + adobe(1) + bare[2:], b"RGB")
    files["adobe-5"] = bare[:2] + adobe(5) + bare[2:]
    files["adobe-short"] = bare[:2] + b"\xff\xee\0\x09Adobe\0\x64" + bare[2:]
    files["ids-rgb"] = with_ids(bare, b"RGB")
    files["ids-0-1-2"] = with_ids(bare, bytes([0, 1, 2]))
    at = files["cmyk"].index(b"Adobe")
    files["cmyk-adobe-1"] = files["cmyk"][:at + 11] + b"\1" + files["cmyk"][at + 12:]
    files["exif-6-long"] = encoded(image, "JPEG", exif=b"Exif\0\0" + exif(6, 4))
    files["exif-7-big-endian"] = encoded(image, "JPEG", exif=b"Exif\0\0" + exif(7, 3, ">"))
    files["xmp-8"] = encoded(image, "JPEG", xmp=b"<x><tiff:Orientation>8</tiff:Orientation></x>")
    files["garbage-behind"] = plain + bytes(range(256)) * 3
    files["garbage-between"] = plain[:2] + b"junk" + plain[2:]
    files["newline-before"] = b"\n" + plain
    for name, whole in (("plain", plain), ("progressive", progressive)):
        for part, end in (("half", len(whole) // 2), ("eighth", len(whole) // 8), ("tail-1", -1), ("tail-2", -2), ("tail-9", -9)):
            files[f"{name}-cut-{part}"] = whole[:end]
    thumbnail = b"\xff\xd8" + b"\xff\xee" + struct.pack(">H", 12) + b"\xff\xd9\xff\xd9\xff\xd9\xff\xd9\xff\xd9"
    files["end-inside-a-segment-cut"] = (thumbnail + plain[2:])[: len(plain) // 2]
    return {f"{name}.jpg": file for name, file in files.items()}


def webps(rgb):
    image = Image.fromarray(rgb)
    alpha = Image.fromarray(np.dstack([rgb, 255 - rgb[:, :, 2] // 2]))
    files = {
        "lossless": encoded(image, "WEBP", lossless=True),
        "lossy": encoded(image, "WEBP", quality=90),
        "alpha": encoded(alpha, "WEBP", lossless=True, exact=True),
        "exif-6": webp_with_exif(image, exif(6)),
        "exif-8-prefixed-long": webp_with_exif(image, exif(8, 4, ">", b"Exif\0\0")),
    }
    files["half"] = files["lossless"][: len(files["lossless"]) // 2]
    files["lossy-cut-1"] = files["lossy"][:-1]
    files["lossy-cut-2"] = files["lossy"][:-2]
    size = struct.unpack("<I", files["lossy"][4:8])[0]
    files["size-too-large"] = files["lossy"][:4] + struct.pack("<I", size + 64) + files["lossy"][8:]
    return {f"{name}.webp": file for name, file in files.items()}


def main():
    random.seed(15)
    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "expected").mkdir(parents=True)
    rgb = scene()
    refused = []
    for name, file in (pngs(rgb) | jpegs(rgb) | webps(rgb)).items():
        (HERE / name).write_bytes(file)
        try:
            seen = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGBA")
        except Exception:
            refused.append(name)
            continue
        seen.save(HERE / "expected" / f"{name}.png", optimize=True)
    (HERE / "refused.txt").write_text("\n".join(sorted(refused)) + "\n")


if __name__ == "__main__":
    main()
