"""Runs jobs through the real binary: one process a checkpoint, one event with all of its jobs."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from bucket import NAME, Bucket
from files import png_pixels

# What a file of weights is read with; both sides compute in single precision.
SETTINGS = {
    "ATELIER__STORE__BUCKET": NAME, "ATELIER__STORE__FORCE_PATH_STYLE": "true", "AWS_S3_REGION_NAME": "us-east-1", "AWS_ACCESS_KEY_ID": "conformance",
    "AWS_SECRET_ACCESS_KEY": "conformance", "AWS_EC2_METADATA_DISABLED": "true", "ATELIER__RUNTIME__MAX_ATTEMPTS": "1",
    "ATELIER__WORKFLOW__ADVANCED__WARMUP_ON_STARTUP": "false", "ATELIER__WORKFLOW__ENCODE__INVISIBLE_MARK": "off",
    # The reference looks at nothing.
    "ATELIER__SAFETY__MODE": "off",
}  # fmt: skip


def environment(bucket, models, model, scratch, settings):
    """What a process is told: this bucket, this model, a cache of its own."""
    told = {"ATELIER__STORE__ENDPOINT_URL": bucket.address, "ATELIER__MODEL__NAME": model, "ATELIER__MODEL__DIRECTORY": str(models),
            "ATELIER__STORE__CACHE__DIRECTORY": str(Path(scratch) / "cache"), "PATH": os.environ["PATH"], "HOME": scratch}  # fmt: skip
    # Of the machine's own, where it has a GPU.
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return SETTINGS | told | inherited | settings


def run(binary, models, model, jobs, inputs, settings):
    """The images of every job by its id, each as (width, height, RGB); `inputs`: files by name, which jobs call s3://NAME/files/FILE."""
    bucket = Bucket()
    bucket.objects |= {f"files/{path.name}": path.read_bytes() for path in inputs}
    records = [{"messageId": job_id, "eventSource": "aws:sqs", "body": json.dumps({"job_id": job_id} | job)} for job_id, job in jobs.items()]
    with tempfile.TemporaryDirectory() as scratch:
        event = Path(scratch) / "event.json"
        event.write_text(json.dumps({"Records": records}))
        variables = environment(bucket, models, model, scratch, settings)
        done = subprocess.run([binary, "invoke", str(event)], env=variables, cwd=scratch, capture_output=True, text=True)
    images, refused = {}, []
    for job_id in jobs:
        keys = [key for key in bucket.objects if key.endswith(f"{job_id}/result.json")]
        if done.returncode or not keys:
            refused.append(job_id)
            continue
        record = json.loads(bucket.objects[keys[0]])
        images[job_id] = [png_pixels(bucket.objects[image["key"]]) for image in record["images"]]
    if refused:
        print(f"{model}: no images of {', '.join(refused)}\n{done.stderr[-6000:]}{done.stdout[-500:]}")
    return images
