"""A step of your own as a program: a white border around every image. Needs Pillow.

    border.py [PIXELS]

Reads the job and its images from standard input, writes the images to standard output: docs/steps.md.
"""

import base64
import io
import json
import sys

from PIL import Image, ImageOps

border_px = int(sys.argv[1]) if len(sys.argv) > 1 else 16
asked = json.load(sys.stdin)
answer = []
for sent in asked["images"]:
    image = Image.open(io.BytesIO(base64.b64decode(sent["data"]))).convert("RGB")
    file = io.BytesIO()
    ImageOps.expand(image, border_px, "white").save(file, "PNG")
    answer.append({"data": base64.b64encode(file.getvalue()).decode()})
json.dump({"images": answer}, sys.stdout)
