"""Files that are made to cost: each is refused, and what the refusal took is counted in a process of its own.

Three counts, and no seconds: memory at its peak, pages that were touched anew however often memory was given back (a loop over memory shows here), and
what the process asked the bucket for. All are compared with those of a job that is generated.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import binary
from bucket import Bucket

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MIB = 1 << 20
# Above a job that is generated: what a refusal may take, at once and over time.
ROOM_MIB, TOUCHED_MIB = 96, 128
# Whether there is a record, the file, and the record of the failure; each at most tried twice.
REQUESTS = 12
GOOD = "a PNG whose data unpacks to 1 GiB"
PROFILE, TEXT, NOTES = "a PNG whose profile unpacks to 1 GiB", "a PNG whose text unpacks to 1 GiB", "a PNG of 500,000 texts"
# Good images: what costs is what no one looks at.
ARE_IMAGES = {GOOD, PROFILE, TEXT, NOTES}


def tensors(entries, data=b"", length=None):
    """A safetensors file; `length`: what it says of its header, where that is another."""
    table = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} for name, shape, size in entries}).encode()
    return struct.pack("<Q", length or len(table)) + table + data


def png(width, height, rows, before=()):
    """`before`: chunks before the pixels, by their names."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    pack, packed = zlib.compressobj(), b""
    for _ in range(rows):
        packed += pack.compress(bytes(1 + 3 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*more) for more in before) + chunk(b"IDAT", packed + pack.flush()) + chunk(b"IEND", b"")


def webp(width, height):
    """Lossless, with a header alone."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(64)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def jpeg(width, height):
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0]) + bytes(64) + b"\xff\xd9"


def scans(side, count):
    """A progressive JPEG whose scans all say that nothing changes: each is a walk over all of its blocks."""
    segment = lambda marker, data: bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data  # noqa: E731
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    # One code each: no difference; an end of band over 2^14 blocks and more.
    codes = segment(0xC4, bytes([0, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    blocks = (side // 8) ** 2
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8)
    runs = [min(max(blocks - done, 1 << 14), (1 << 15) - 1) for done in range(0, blocks, (1 << 15) - 1)]
    bits = "".join("0" + format(run - (1 << 14), "014b") for run in runs)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data
    return b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64)) + frame + codes + first + scan * count + b"\xff\xd9"


def bmp(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def unpacked(size):
    return zlib.compress(bytes(size))


def files():
    """Name: the field of the job, and the bytes."""
    profile = b"icc\0\0" + unpacked(1 << 30)
    text = b"Raw profile type exif\0\0" + unpacked(1 << 30)
    hundred = 100 * MIB
    million = [(f"unet.m{n}.lora_A.weight", [], 0) for n in range(1_000_000)]
    return {
        "a million tensors": ("lora", tensors(million)),
        "a header of 2^60 bytes": ("lora", tensors([], length=1 << 60)),
        "a header of 100 MiB of notes": ("lora", tensors([(f"{QUERY}.lora_A.weight", [4, 16], 256)], bytes(256) + b"x" * hundred, length=hundred)),
        "a header of 64 MiB of blanks": ("lora", struct.pack("<Q", 64 * MIB) + b"{" + b" " * (64 * MIB - 2) + b"}"),
        "a tensor of 2^62 elements": ("lora", tensors([(f"{QUERY}.lora_A.weight", [1 << 31, 1 << 31], 4)], bytes(4))),
        "a LoKr of nothing": ("lora", tensors([(f"{QUERY}.lokr_w1", [0, 4], 0), (f"{QUERY}.lokr_w2", [4, 4], 64)], bytes(64))),
        "a LoRA of rank 2^20": ("lora", tensors([(f"{QUERY}.lora_A.weight", [1 << 20, 8], 1 << 25), (f"{QUERY}.lora_B.weight", [8, 1 << 20], 1 << 25)], bytes(1 << 26))),
        "a million tensors of an embedding": ("embeddings", tensors(million)),
        "an embedding of 1,000 vectors": ("embeddings", tensors([("emb_params", [1000, 64], 256_000)], bytes(256_000))),
        "a PNG of 30000 x 30000": ("init_image", png(30_000, 30_000, 300)),
        # Behind the last row nothing is unpacked: this one is a good image, as with Pillow.
        PROFILE: ("init_image", png(64, 64, 64, [(b"iCCP", profile)])),
        TEXT: ("init_image", png(64, 64, 64, [(b"zTXt", text)])),
        NOTES: ("init_image", png(64, 64, 64, [(b"tEXt", b"a\0b")] * 500_000)),
        "a JPEG of 4,000 scans": ("init_image", scans(2048, 4000)),
        "a BMP of 60000 x 60000": ("init_image", bmp(60_000, 60_000)),
        GOOD: ("init_image", png(64, 64, 5_500_000)),
        "a WebP of 16383 x 16383": ("init_image", webp(16_383, 16_383)),
        "a JPEG of 65500 x 65500": ("init_image", jpeg(65_500, 65_500)),
    }


def measured(program, models, job, content):
    """Peak and touched memory in MiB, requests to the bucket, whether an image was made, and the exit code."""
    bucket = Bucket()
    bucket.objects["files/file"] = content
    with tempfile.TemporaryDirectory() as scratch:
        body = json.dumps({"job_id": "hostile", "prompt": "a", "steps": 1, "width": 64, "height": 64, "guidance_scale": 1} | job)
        job_file = Path(scratch) / "event.json"
        job_file.write_text(json.dumps({"Records": [{"messageId": "1", "eventSource": "aws:sqs", "body": body}]}))
        environment = binary.environment(bucket, models, "tiny-sd", scratch, {"ATELIER__ENGINE__DTYPE": "f32"})
        # From a process of its own: the peak of a child begins with the memory of the one that it was forked from.
        counted = subprocess.run([sys.executable, "-c", COUNTED, program, "invoke", str(job_file)], env=environment, cwd=scratch, capture_output=True, check=True)
        peak, pages, status = map(int, counted.stdout.split())
        made = any(key.endswith("result.json") for key in bucket.objects)
        return peak // 1024, pages * os.sysconf("SC_PAGE_SIZE") // MIB, bucket.requests, made, status


COUNTED = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "log", os.O_WRONLY | os.O_CREAT, 0o600)])
_, status, used = os.wait4(child, 0)
print(used.ru_maxrss, used.ru_minflt, os.waitstatus_to_exitcode(status))
"""


def table(program, models):
    """Prints what each file took; the exit code."""
    address = "s3://conformance/files/file"
    usual, often, _, made, _ = measured(program, models, {}, b"")
    print(f"{'file':40}{'bytes':>12}{'MiB more':>10}{'MiB touched':>13}{'requests':>10}   answer")
    wrong, hostile = 0 if made else 1, files()
    for name, (field, content) in hostile.items():
        value = {"lora": [{"url": address}], "embeddings": [{"url": address, "token": "<a>"}], "init_image": {"url": address}}[field]
        more = {"strength": 1.0} if field == "init_image" else {}
        peak, touched, requests, made, status = measured(program, models, {field: value} | more, content)
        # The file itself lies in the cache, and in no memory.
        peak, touched = max(0, peak - usual), max(0, touched - often)
        good = made == (name in ARE_IMAGES) and status == 0 and peak <= ROOM_MIB and touched <= TOUCHED_MIB and requests <= REQUESTS
        wrong += not good
        print(f"{name:40}{len(content):12}{peak:10}{touched:13}{requests:10}   {'generated' if made else 'refused'}{'' if good else '  WRONG'}")
    print(f"{len(hostile) - wrong} of {len(hostile)} within the bounds")
    return 1 if wrong else 0
