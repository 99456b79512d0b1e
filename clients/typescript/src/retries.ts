// When a request is sent again: where the host asks for it, and where a repetition is the same job.
//
// - 429, 503 and 409 `in_progress` with `Retry-After`: the host has taken nothing, and says when to come again.
// - No answer: a job is known by its `job_id`, so handing it in twice is one job, and what only reads may be read again.
// - Nothing else: the host's other answers stay the same.
import { ApiError } from "./errors.js";

/** How patient a client is. */
export interface Retry {
  /** 4; 0 never repeats anything. */
  maxRetries: number;
  /** 60,000; a host that asks for more than that is not waited for. */
  maxPauseMs: number;
  /** 30 in a row, of a stream of events that has begun. */
  maxReconnects: number;
}

export const DEFAULT_RETRY: Retry = { maxRetries: 4, maxPauseMs: 60_000, maxReconnects: 30 };

/** What Node says of a request that the host never saw. */
const NOT_SENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"];

/** Milliseconds until the next try; undefined: there is none. `attempt`: tries before this one. */
export function afterAnswer(retry: Retry, error: ApiError, attempt: number): number | undefined {
  const pauseMs = (error.retryAfterSeconds ?? Infinity) * 1000;
  if (attempt >= retry.maxRetries || pauseMs > retry.maxPauseMs) return undefined;
  return error.status === 429 || error.status === 503 || error.code === "in_progress" ? pauseMs : undefined;
}

/** As `afterAnswer`, where no answer came. */
export function afterLoss(retry: Retry, error: unknown, attempt: number, isRepeatable: boolean): number | undefined {
  if (attempt >= retry.maxRetries || !(isRepeatable || wasNotSent(error))) return undefined;
  return backoffMs(retry, attempt);
}

/** As `afterAnswer`, of a stream of events that broke off, or that was refused when it was opened. */
export function beforeReconnect(retry: Retry, cause: unknown, attempt: number, hasBegun: boolean): number | undefined {
  if (!(cause instanceof ApiError)) {
    return attempt < (hasBegun ? retry.maxReconnects : retry.maxRetries) ? backoffMs(retry, attempt) : undefined;
  }
  // As many follow jobs there as may: the host says to ask for the job instead.
  if (!hasBegun) return cause.status === 429 ? undefined : afterAnswer(retry, cause, attempt);
  // While a host starts anew, what stands before it may answer.
  if (attempt >= retry.maxReconnects || ![429, 502, 503, 504].includes(cause.status)) return undefined;
  return Math.min(Math.max(backoffMs(retry, attempt), (cause.retryAfterSeconds ?? 0) * 1000), retry.maxPauseMs);
}

/** From half a second on, doubled up to four; a part of it by chance, so that many clients do not come at once. */
function backoffMs(retry: Retry, attempt: number): number {
  return Math.min(500 * 2 ** Math.min(attempt, 3), retry.maxPauseMs) * (0.75 + Math.random() / 2);
}

function wasNotSent(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  return typeof cause === "object" && cause !== null && "code" in cause && NOT_SENT.includes(String(cause.code));
}
