// What can go wrong, each in the host's own words where the host has said something.
import type { AlreadyEnded, Job, Problem, Result } from "./schema.js";

/** Characters of an answer that is not the host's, such as a gateway's page. */
const MAX_FOREIGN_TEXT = 200;

/** All errors of this package. */
export class AtelierError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** What an answer that refuses says. */
export interface Refusal {
  status: number;
  headers: Headers;
  text: string;
}

/** The host has refused: `code` is a stable word, `detail` says what is allowed or to be done, `field` is at fault. */
export class ApiError extends AtelierError {
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly field: string | undefined;
  /** Of `content_blocked`: one word, such as nude. */
  readonly category: string | undefined;
  /** Seconds; only where the host says that the same request may come again. */
  readonly retryAfterSeconds: number | undefined;
  /** The line of the host's log that belongs to it. */
  readonly requestId: string | undefined;
  readonly body: unknown;

  constructor(refusal: Refusal) {
    const body = parsed(refusal.text);
    const error = isProblem(body) ? body.error : undefined;
    const code = error?.code ?? "unknown";
    const detail = error?.message ?? refusal.text.trim().slice(0, MAX_FOREIGN_TEXT);
    super(`${refusal.status} ${code}: ${error?.field ? `${error.field}: ` : ""}${detail}`);
    this.status = refusal.status;
    this.code = code;
    this.detail = detail;
    this.field = error?.field;
    this.category = error?.category;
    const seconds = refusal.headers.get("retry-after") ?? "";
    this.retryAfterSeconds = /^[0-9]+$/.test(seconds) ? Number(seconds) : undefined;
    this.requestId = refusal.headers.get("x-request-id") ?? undefined;
    this.body = body;
  }
}

/** 400: the field `field` is wrong. */
export class InvalidRequestError extends ApiError {}
/** 401: the token is missing or wrong. */
export class UnauthorizedError extends ApiError {}
/** 404: this host knows no such job, or has no such image. */
export class NotFoundError extends ApiError {}
/** 409: the `job_id` or the idempotency key stands for another request; or there is no image yet. */
export class ConflictError extends ApiError {}
/** 409 `in_progress`: the same request is under way. */
export class InProgressError extends ConflictError {}
/** 410: the job of an `infer` was cancelled. */
export class CancelledError extends ApiError {}
/** 413: the body or an image is too large; `detail` says the limit. */
export class TooLargeError extends ApiError {}
/** 422: the job of an `infer` cannot be generated, such as for an input that is not there. */
export class NotGeneratedError extends ApiError {}
/** 429: nothing more may wait. */
export class BusyError extends ApiError {}
/** 503: the model, the queue or the store is not ready, or the host shuts down. */
export class UnavailableError extends ApiError {}

/** 409 `already_ended`: there is nothing to cancel. `result` is there where the job is complete. */
export class AlreadyEndedError extends ConflictError {
  readonly state: AlreadyEnded["state"];
  readonly result: Result | undefined;

  constructor(refusal: Refusal) {
    super(refusal);
    const ended = this.body as AlreadyEnded;
    this.state = ended.state;
    this.result = ended.result;
  }
}

/** No answer came; `cause` has the error of fetch. */
export class HostUnreachableError extends AtelierError {}

/** A job that was waited for has failed. */
export class JobFailedError extends AtelierError {
  readonly job: Job;
  readonly code: string;
  readonly detail: string;
  readonly field: string | undefined;

  constructor(job: Job) {
    const code = job.error?.code ?? job.state;
    const detail = job.error?.message ?? `the job is ${job.state}`;
    super(`${job.job_id}: ${code}: ${detail}`);
    this.job = job;
    this.code = code;
    this.detail = detail;
    this.field = job.error?.field;
  }
}

/** A job that was waited for was cancelled. */
export class JobCancelledError extends JobFailedError {}

/** A job has not ended in the time that its caller gave it; it goes on. */
export class WaitTimeoutError extends AtelierError {}

/** A webhook is not what the host has sent, or is too old: answer it with 401. */
export class WebhookVerificationError extends AtelierError {}

/** A webhook is what the host has sent, and of a kind that this version does not know: answer it with 2xx, or it comes again. */
export class UnknownWebhookError extends AtelierError {}

const BY_STATUS: Record<number, typeof ApiError> = {
  400: InvalidRequestError,
  401: UnauthorizedError,
  404: NotFoundError,
  409: ConflictError,
  410: CancelledError,
  413: TooLargeError,
  422: NotGeneratedError,
  429: BusyError,
  503: UnavailableError,
};

/** The error of an answer that refuses. */
export async function errorOf(response: Response): Promise<ApiError> {
  const refusal = { status: response.status, headers: response.headers, text: await response.text() };
  const error = new (BY_STATUS[response.status] ?? ApiError)(refusal);
  if (error instanceof ConflictError && error.code === "in_progress") return new InProgressError(refusal);
  if (error instanceof ConflictError && error.code === "already_ended") return new AlreadyEndedError(refusal);
  return error;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isProblem(body: unknown): body is Problem {
  const error = typeof body === "object" && body !== null && "error" in body ? body.error : undefined;
  return typeof error === "object" && error !== null && "code" in error && "message" in error;
}
