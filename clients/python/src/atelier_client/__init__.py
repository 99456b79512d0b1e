"""Typed client of an atelier host: jobs, their events and images, and webhooks that are verified."""

from . import models
from .aio import AsyncClient
from .calls import Image, Submitted
from .client import Client
from .errors import (
    AlreadyEndedError,
    ApiError,
    AtelierError,
    BusyError,
    CancelledError,
    ConflictError,
    HostUnreachableError,
    InProgressError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    NotFoundError,
    NotGeneratedError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnknownWebhookError,
    WaitTimeoutError,
    WebhookVerificationError,
)
from .models import Edit, EditForm, Generate, InferForm, InferFormJson, Job, Result, TryOn, TryOnForm, TryOnFormJson
from .retries import Retry
from .sse import JobEvent
from .webhooks import Webhook, WebhookEvent, WebhookVerifier

__all__ = [
    "AlreadyEndedError",
    "ApiError",
    "AsyncClient",
    "AtelierError",
    "BusyError",
    "CancelledError",
    "Client",
    "ConflictError",
    "Edit",
    "EditForm",
    "Generate",
    "HostUnreachableError",
    "Image",
    "InProgressError",
    "InferForm",
    "InferFormJson",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobEvent",
    "JobFailedError",
    "NotFoundError",
    "NotGeneratedError",
    "Result",
    "Retry",
    "Submitted",
    "TooLargeError",
    "TryOn",
    "TryOnForm",
    "TryOnFormJson",
    "UnauthorizedError",
    "UnavailableError",
    "UnknownWebhookError",
    "WaitTimeoutError",
    "Webhook",
    "WebhookEvent",
    "WebhookVerificationError",
    "WebhookVerifier",
    "models",
]
