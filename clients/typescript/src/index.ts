// Typed client of an atelier host: jobs, their events and images, and webhooks that are verified.
export type { EditBody, EditForm, ImageFile, InferBody, InferForm, TryOnBody, TryOnForm } from "./bodies.js";
export { Client } from "./client.js";
export type { Cancellable, ClientOptions, EventsOptions, InferOptions, ReceivedImage, SubmitOptions, Submitted, WaitOptions } from "./client.js";
export {
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
} from "./errors.js";
export type { Retry } from "./retries.js";
export type * as schema from "./schema.js";
export type { Cancelling, Edit, Generate, Job, Readiness, Result, ServedModel, TryOn, TryOnFormJson } from "./schema.js";
export { isEnd, type EventName, type JobEvent } from "./sse.js";
export { WebhookVerifier, type Webhook, type WebhookEvent, type WebhookHeaders } from "./webhooks.js";
