"""Publishes a job to SQS: pip install boto3, then python sqs_boto3.py "a red mug on the beach".

Reads SQS_QUEUE_URL, and credentials and region from wherever boto3 finds them.
"""

import json
import os
import sys
import uuid

import boto3

# The id is yours. Send the same id and the same request again after a failure: nothing is generated twice.
job = {"job_id": f"example-{uuid.uuid4()}", "prompt": sys.argv[1], "steps": 20, "seed": 42}
queue_url = os.environ["SQS_QUEUE_URL"]

message = {"QueueUrl": queue_url, "MessageBody": json.dumps(job)}
if queue_url.endswith(".fifo"):
    # Jobs of one group run in order, so each caller gets a group of its own.
    message |= {"MessageGroupId": "example", "MessageDeduplicationId": job["job_id"]}
boto3.client("sqs").send_message(**message)
print(job["job_id"])
