"""Publishes a job to RabbitMQ: pip install pika, then python rabbitmq_pika.py "a red mug on the beach".

Reads RABBITMQ_HOST (localhost), RABBITMQ_PORT (5672), RABBITMQ_USER and RABBITMQ_PASS (guest), RABBITMQ_QUEUE (image_generation).
"""

import json
import os
import sys
import uuid

import pika

# The id is yours. Send the same id and the same request again after a failure: nothing is generated twice.
job = {"job_id": f"example-{uuid.uuid4()}", "prompt": sys.argv[1], "steps": 20, "seed": 42}
queue = os.environ.get("RABBITMQ_QUEUE", "image_generation")

login = pika.PlainCredentials(os.environ.get("RABBITMQ_USER", "guest"), os.environ.get("RABBITMQ_PASS", "guest"))
host, port = os.environ.get("RABBITMQ_HOST", "localhost"), int(os.environ.get("RABBITMQ_PORT", "5672"))
with pika.BlockingConnection(pika.ConnectionParameters(host, port, credentials=login)) as connection:
    channel = connection.channel()
    # The broker confirms that it has the message, and `mandatory` makes a queue that is not there an error.
    channel.confirm_delivery()
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish("", queue, json.dumps(job).encode(), properties, mandatory=True)
print(job["job_id"])
