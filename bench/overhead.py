"""What a job costs beside generation: the handler with a null engine against the same steps in Python, on the same servers.

    python bench/overhead.py [--profile dev] [--note TEXT]      needs boto3, requests, pillow, standardwebhooks

A job is: an SQS event parsed, the record looked up, one 512x512 image of noise encoded as PNG, image and record put into S3,
a signed webhook posted. Ours sends its progress notifications as well. Times are medians over jobs that alternate.
"""

import argparse
import datetime
import io
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import boto3
import PIL
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image
from report import cpu, report, row
from standardwebhooks import Webhook

ROOT = Path(__file__).resolve().parent.parent
PEER = f"Python: boto3 {boto3.__version__}, Pillow {PIL.__version__}, requests {requests.__version__}"
SECRET = "whsec_YXRlbGllci1kZW1vLXNlY3JldC1vbmx5LWhlcmU="
JOBS = 60


class Peer:
    """The same job, as a Python worker would do it: connections kept, one client made at start."""

    def __init__(self, s3, webhooks):
        self.s3 = boto3.client(
            "s3", endpoint_url=f"http://{s3}", region_name="us-east-1", aws_access_key_id="atelier-demo",
            aws_secret_access_key="atelier-demo-secret", config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip
        self.session, self.webhook = requests.Session(), Webhook(SECRET)
        self.backend = f"http://{webhooks}/api/webhooks/inference/complete"
        self.pixels = bytes((n * 2_654_435_761 >> 24) & 255 for n in range(512 * 512 * 3))

    def run(self, event):
        job = json.loads(event["Records"][0]["body"])
        directory = f"generations/{job['job_id']}"
        try:
            self.s3.get_object(Bucket="atelier-demo", Key=f"{directory}/result.json")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchKey", error
        file = io.BytesIO()
        Image.frombytes("RGB", (512, 512), self.pixels).save(file, "PNG", compress_level=1)
        self.s3.put_object(Bucket="atelier-demo", Key=f"{directory}/0.png", Body=file.getvalue(), ContentType="image/png")
        record = json.dumps({"job_id": job["job_id"], "images": [f"{directory}/0.png"]})
        self.s3.put_object(Bucket="atelier-demo", Key=f"{directory}/result.json", Body=record, IfNoneMatch="*")
        url = self.s3.generate_presigned_url("get_object", {"Bucket": "atelier-demo", "Key": f"{directory}/0.png"})
        body, now = json.dumps({"job_id": job["job_id"], "images": [{"url": url}]}), datetime.datetime.now(datetime.UTC)
        headers = {"webhook-id": job["job_id"], "webhook-timestamp": str(int(now.timestamp())),
                   "webhook-signature": self.webhook.sign(job["job_id"], now, body)}  # fmt: skip
        self.session.post(self.backend, data=body, headers=headers).raise_for_status()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    build = ["cargo", "bench", "--bench", "overhead", "--no-run", "--profile", options.profile, "--message-format", "json"]
    lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    built = [m["executable"] for m in map(json.loads, lines) if m.get("target", {}).get("name") == "overhead"]
    ours = subprocess.Popen([built[-1]], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    peer = Peer(*ours.stdout.readline().split())
    event = json.loads((ROOT / "events" / "sqs-plain.json").read_text())
    pairs = []
    for n in range(JOBS + 5):
        ours.stdin.write(f"ours-{n}\n")
        ours.stdin.flush()
        mine = float(ours.stdout.readline())
        event["Records"][0]["body"] = json.dumps({"job_id": f"peer-{n}", "prompt": "nothing"})
        start = time.perf_counter()
        peer.run(event)
        pairs.append((mine * 1000, (time.perf_counter() - start) * 1000))
    ours.stdin.close()
    mine, theirs = (statistics.median(times) for times in zip(*pairs[5:], strict=True))
    threads = len(os.sched_getaffinity(0))
    report("overhead", "cpu", [row("a job without generation, 512x512 PNG", "ms", mine, PEER, theirs, cpu(threads), options.note)])


if __name__ == "__main__":
    main()
