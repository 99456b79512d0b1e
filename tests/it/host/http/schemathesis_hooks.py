"""What schemathesis cannot know of our document: what an image is, and which addresses we take."""

import base64
import struct
import zlib

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    rows = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


images = st.builds(png, st.integers(16, 24), st.integers(16, 24))
names = st.from_regex(r"[a-z][a-z0-9]{2,20}", fullmatch=True)
https = st.builds("https://{}.example/{}?X-Amz-Signature={}".format, names, names, names)
files = st.one_of(st.builds("s3://{}/{}.png".format, names, names), https)
data = images.map(lambda image: "data:image/png;base64," + base64.b64encode(image).decode())
schemathesis.openapi.format("https-address", https)
schemathesis.openapi.format("file-address", files)
schemathesis.openapi.format("image-address", st.one_of(files, data))


@schemathesis.hook
def before_call(context, case, kwargs):
    """To the document a file is any bytes; what is to be accepted must be an image."""
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if not (positive and isinstance(case.body, dict)):
        return
    if case.media_type == "multipart/form-data":
        if case.operation.path == "/edit":
            case.body["image"] = [Binary(png(16, 16)) for _ in case.body["image"]]
        else:
            for name in ("masked_user_image", "garment_image"):
                case.body[name] = Binary(png(16, 16))
    # Strength and mask belong to an image, and a small strength may leave no step: rules between fields are not in the document.
    if "prompt" in case.body and "person" not in case.body and "images" not in case.body:
        # So are the schedulers that take lists and eta, and the order in a list; the sizes are for models of Stable Diffusion XL, and the
        # bundled model has no ControlNets, IP-Adapters, upscalers and segmenter.
        for name in ("controlnets", "ip_adapters", "timesteps", "sigmas", "eta", "original_size", "crops_coords_top_left", "target_size"):
            case.body.pop(name, None)
        if case.body.get("init_image") is not None:
            case.body.pop("guidance_rescale", None)
        if case.body.get("init_image") is None:
            case.body.pop("image_guidance_scale", None)
            case.body.pop("strength", None)
            case.body.pop("mask_image", None)
        else:
            case.body["strength"] = 1
    case.body.pop("upscale", None)
    case.body.pop("auto_mask", None)
    # The embedded S3 server keeps an object's key in the name of a file, which ends at 255 bytes.
    if len(case.body["job_id"]) > 100:
        case.body["job_id"] = case.body["job_id"][:100]
    # Else it takes the body for an invalid one, for it cannot check a body with bytes in it again.
    case._record_starting_state()
