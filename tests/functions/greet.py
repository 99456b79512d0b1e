"""A Lambda function in Python, as its author would write it for AWS: nothing in it knows atelier."""

import os
import signal
import time


def handler(event, context):
    body = event.get("Records", [{}])[0].get("body", "") if isinstance(event, dict) else ""
    if "die" in body:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in body:
        os._exit(3)
    if "hang" in body:
        time.sleep(3600)
    if "raise" in body:
        raise ValueError("this function was told to fail")
    return {
        "message": f"Hello, {event.get('firstName', 'world')}!",
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "function": context.function_name,
        "arn": context.invoked_function_arn,
    }
