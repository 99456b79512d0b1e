"""Files that are made to cost: each is refused, and what the refusal took is measured in a process of its own."""

import json
import struct
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import binary
from bucket import Bucket

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MIB = 1 << 20
# Above a job that is generated: what a refusal may take.
ROOM_MIB = 96
GOOD = "a PNG whose data unpacks to 1 GiB"


def tensors(entries, data=b"", length=None):
    """A safetensors file; `length`: what it says of its header, where that is another."""
    table = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} for name, shape, size in entries}).encode()
    return struct.pack("<Q", length or len(table)) + table + data


def png(width, height, rows):
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    pack, packed = zlib.compressobj(9), b""
    for _ in range(rows):
        packed += pack.compress(bytes(1 + 3 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed + pack.flush()) + chunk(b"IEND", b"")


def webp(width, height):
    """Lossless, with a header alone."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(64)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def jpeg(width, height):
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0]) + bytes(64) + b"\xff\xd9"


def files():
    """Name: the field of the job, and the bytes."""
    million = [(f"unet.m{n}.lora_A.weight", [], 0) for n in range(1_000_000)]
    return {
        "a million tensors": ("lora", tensors(million)),
        "a header of 2^60 bytes": ("lora", tensors([], length=1 << 60)),
        "a header of 64 MiB of blanks": ("lora", struct.pack("<Q", 64 * MIB) + b"{" + b" " * (64 * MIB - 2) + b"}"),
        "a tensor of 2^62 elements": ("lora", tensors([(f"{QUERY}.lora_A.weight", [1 << 31, 1 << 31], 4)], bytes(4))),
        "a LoKr of nothing": ("lora", tensors([(f"{QUERY}.lokr_w1", [0, 4], 0), (f"{QUERY}.lokr_w2", [4, 4], 64)], bytes(64))),
        "a PNG of 30000 x 30000": ("init_image", png(30_000, 30_000, 300)),
        # Behind the last row nothing is unpacked: this one is a good image, as with Pillow.
        GOOD: ("init_image", png(64, 64, 5_500_000)),
        "a WebP of 16383 x 16383": ("init_image", webp(16_383, 16_383)),
        "a JPEG of 65500 x 65500": ("init_image", jpeg(65_500, 65_500)),
    }


def measured(program, models, job, content):
    """Seconds, peak in MiB, and whether an image was made."""
    bucket = Bucket()
    bucket.objects["files/file"] = content
    with tempfile.TemporaryDirectory() as scratch:
        body = json.dumps({"job_id": "hostile", "prompt": "a", "steps": 1, "width": 64, "height": 64, "guidance_scale": 1, "strength": 1.0} | job)
        job_file = Path(scratch) / "event.json"
        job_file.write_text(json.dumps({"Records": [{"messageId": "1", "eventSource": "aws:sqs", "body": body}]}))
        environment = binary.environment(bucket, models, "tiny-sd", scratch, {"ATELIER__ENGINE__DTYPE": "f32"})
        began = time.monotonic()
        with (Path(scratch) / "log").open("w") as log:
            process, peak = subprocess.Popen([program, "invoke", str(job_file)], env=environment, cwd=scratch, stdout=log, stderr=log), 0
            while process.poll() is None:
                peak = max(peak, peak_kib(process.pid))
                time.sleep(0.005)
        return time.monotonic() - began, peak // 1024, any(key.endswith("result.json") for key in bucket.objects), process.returncode


def peak_kib(pid):
    """The most that the process has had in memory so far."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def table(program, models):
    """Prints what each file took; the exit code."""
    address = "s3://conformance/files/file"
    plain = {"strength": None}
    _, usual, made, _ = measured(program, models, plain, b"")
    print(f"{'file':40}{'bytes':>12}{'seconds':>9}{'MiB more':>10}   answer")
    wrong = 0 if made else 1
    for name, (field, content) in files().items():
        job = plain | {"lora": [{"url": address}]} if field == "lora" else {field: {"url": address}}
        seconds, peak, made, status = measured(program, models, job, content)
        # The file itself lies in the cache, and in no memory.
        more = max(0, peak - usual)
        good = made == (name == GOOD) and status == 0 and more <= ROOM_MIB
        wrong += not good
        print(f"{name:40}{len(content):12}{seconds:9.2f}{more:10}   {'generated' if made else 'refused'}{'' if good else '  WRONG'}")
    return 1 if wrong else 0
