// The client of a host.
import { bodyOf, withTask, type EditBody, type InferBody, type TryOnBody } from "./bodies.js";
import {
  ApiError,
  AtelierError,
  BusyError,
  HostUnreachableError,
  JobCancelledError,
  JobFailedError,
  UnavailableError,
  WaitTimeoutError,
  errorOf,
} from "./errors.js";
import { DEFAULT_RETRY, afterAnswer, afterLoss, beforeReconnect, type Retry } from "./retries.js";
import type { Accepted, AlreadyComplete, Cancelling, Generate, Job, Readiness, Result, ServedModel } from "./schema.js";
import { EventParser, isEnd, type JobEvent } from "./sse.js";

/** A stream of events says something every ten seconds. */
const SILENCE_MS = 45_000;
const POLL_MS = 5_000;

export interface ClientOptions {
  token?: string | undefined;
  /** 60,000; of every request but `infer` and streams. */
  timeoutMs?: number | undefined;
  retry?: Partial<Retry> | undefined;
  /** Another one than the platform's. */
  fetch?: typeof fetch | undefined;
}

/** Where `signal` is aborted its reason is thrown. */
export interface Cancellable {
  signal?: AbortSignal | undefined;
}

export interface SubmitOptions extends Cancellable {
  idempotencyKey?: string | undefined;
  traceparent?: string | undefined;
}

export interface InferOptions extends Cancellable {
  /** 290,000. */
  timeoutMs?: number | undefined;
  traceparent?: string | undefined;
}

export interface EventsOptions extends Cancellable {
  lastEventId?: string | undefined;
}

export interface WaitOptions extends Cancellable {
  /** Without it the job is waited for as long as it takes. */
  timeoutMs?: number | undefined;
}

/** A job that the host has taken, or had already. */
export interface Submitted {
  jobId: string;
  status: "accepted" | "complete";
  message: string;
  /** Of a job that is complete already. */
  result: Result | undefined;
  /** The request came again under its idempotency key. */
  isReplayed: boolean;
}

/** A file with an image, as the host has stored it. */
export interface ReceivedImage {
  bytes: Uint8Array;
  /** Such as image/png. */
  contentType: string;
  /** Of `infer`. */
  jobId: string | undefined;
  /** Of `infer`. */
  inferenceTimeMs: number | undefined;
}

interface Call {
  method: "GET" | "POST" | "DELETE";
  path: string;
  headers?: Record<string, string | undefined>;
  body?: string | FormData;
  timeoutMs?: number;
  signal?: AbortSignal | undefined;
  /** Where no answer came it is not sent again. */
  isOnce?: boolean;
}

/** A host, as its callers see it. */
export class Client {
  readonly #base: string;
  readonly #token: string | undefined;
  readonly #timeoutMs: number;
  readonly #retry: Retry;
  readonly #fetch: typeof fetch;

  /** `baseUrl`: such as https://host.example:8080. Throws a RangeError for a token that no header can carry. */
  constructor(baseUrl: string | URL, options: ClientOptions = {}) {
    this.#base = String(baseUrl).replace(/\/+$/, "");
    // fetch would refuse each request with the token in its words, as if no answer had come.
    if (!/^[ -~]*$/.test(options.token ?? "")) throw new RangeError("the token must be of printable ASCII characters, without line ends");
    this.#token = options.token;
    this.#timeoutMs = options.timeoutMs ?? 60_000;
    this.#retry = {
      maxRetries: options.retry?.maxRetries ?? DEFAULT_RETRY.maxRetries,
      maxPauseMs: options.retry?.maxPauseMs ?? DEFAULT_RETRY.maxPauseMs,
      maxReconnects: options.retry?.maxReconnects ?? DEFAULT_RETRY.maxReconnects,
    };
    // Browsers want it called as a method of nothing.
    this.#fetch = options.fetch ?? ((input, init) => fetch(input, init));
  }

  /** Hands in a job that generates from text. The same job again is the same job. */
  generate(job: Generate, options: SubmitOptions = {}): Promise<Submitted> {
    return this.#submit("generate", job, options);
  }

  /** Hands in an edit: an `EditForm` brings its images along, an `Edit` has their addresses. */
  edit(job: EditBody, options: SubmitOptions = {}): Promise<Submitted> {
    return this.#submit("edit", job, options);
  }

  /** Hands in a try-on: a `TryOnForm` brings its images along, `TryOn` and `TryOnFormJson` have their addresses. */
  tryon(job: TryOnBody, options: SubmitOptions = {}): Promise<Submitted> {
    return this.#submit("tryon", job, options);
  }

  /** Generates now, and gives the first image. A caller who goes away cancels the job, of which no webhook tells. */
  async infer(job: InferBody, options: InferOptions = {}): Promise<ReceivedImage> {
    const headers = { traceparent: options.traceparent };
    // Node's own fetch gives an answer's headers no more than 300 s.
    const timeoutMs = options.timeoutMs ?? 290_000;
    // A lost connection cancels the job: whether to begin anew is the caller's to say.
    const once = { isOnce: true, timeoutMs, signal: options.signal };
    return this.#send({ method: "POST", path: "infer", headers, body: bodyOf(withTask(job)), ...once }, receivedImage);
  }

  /** How a job is. */
  job(jobId: string, options: Cancellable = {}): Promise<Job> {
    return this.#send({ method: "GET", path: `jobs/${encodeURIComponent(jobId)}`, ...options }, json<Job>);
  }

  /** The 100 newest jobs of this host, without their results. */
  async jobs(options: Cancellable = {}): Promise<Job[]> {
    return (await this.#send({ method: "GET", path: "jobs", ...options }, json<{ jobs: Job[] }>)).jobs;
  }

  /** Image `index`, from 0, of a complete job. */
  image(jobId: string, index = 0, options: Cancellable = {}): Promise<ReceivedImage> {
    return this.#send({ method: "GET", path: `jobs/${encodeURIComponent(jobId)}/images/${index}`, ...options }, receivedImage);
  }

  /** Cancels a job. Throws an AlreadyEndedError, with the result, where there is nothing to cancel. */
  cancel(jobId: string, options: Cancellable = {}): Promise<Cancelling> {
    // After a lost answer the repetition would say that the job has ended, and not why.
    const call: Call = { method: "DELETE", path: `jobs/${encodeURIComponent(jobId)}`, isOnce: true };
    return this.#send({ ...call, ...options }, json<Cancelling>);
  }

  /** The models that are served, with what a job may ask of each. */
  async models(options: Cancellable = {}): Promise<ServedModel[]> {
    return (await this.#send({ method: "GET", path: "models", ...options }, json<{ models: ServedModel[] }>)).models;
  }

  /** Whether every model is ready; where not, `reason` says why. */
  async ready(options: Cancellable = {}): Promise<Readiness> {
    try {
      return await this.#send({ method: "GET", path: "test", ...options }, json<Readiness>);
    } catch (error) {
      if (error instanceof UnavailableError) return error.body as Readiness;
      throw error;
    }
  }

  /**
   * What happens to a job, until it has ended, over lost connections and restarts of the host.
   * `lastEventId`: of the last event that you have; only what is new comes.
   */
  async *events(jobId: string, options: EventsOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    let last = options.lastEventId;
    for (let attempt = 0; ; attempt += 1) {
      let cause: unknown;
      const headers = { accept: "text/event-stream", "last-event-id": last };
      const opened = new AbortController();
      let silence = setTimeout(() => opened.abort(), SILENCE_MS);
      try {
        const signal = either(opened.signal, options.signal);
        const response = await this.#request({ method: "GET", path: `jobs/${encodeURIComponent(jobId)}/events`, headers, signal });
        if (response.status === 204) return;
        if (!response.ok) throw await errorOf(response);
        const parser = new EventParser();
        for await (const text of texts(response)) {
          clearTimeout(silence);
          silence = setTimeout(() => opened.abort(), SILENCE_MS);
          for (const event of parser.feed(text)) {
            attempt = 0;
            last = event.id;
            yield event;
            if (isEnd(event)) return;
          }
        }
      } catch (error) {
        options.signal?.throwIfAborted();
        if (!(error instanceof ApiError) && !isLoss(error)) throw error;
        cause = error;
      } finally {
        clearTimeout(silence);
        opened.abort();
      }
      const pauseMs = beforeReconnect(this.#retry, cause, attempt, last !== undefined);
      if (pauseMs === undefined) throw cause instanceof ApiError ? cause : this.#unreachable(cause);
      await pause(pauseMs, options.signal);
    }
  }

  /** The job when it is complete. Throws a JobFailedError, a JobCancelledError or a WaitTimeoutError. */
  async wait(jobId: string, options: WaitOptions = {}): Promise<Job> {
    const timeout = options.timeoutMs === undefined ? undefined : AbortSignal.timeout(options.timeoutMs);
    try {
      const job = await this.#ended(jobId, timeout ? either(timeout, options.signal) : options.signal);
      if (job.state === "complete") return job;
      throw job.state === "cancelled" ? new JobCancelledError(job) : new JobFailedError(job);
    } catch (error) {
      if (error instanceof AtelierError || !timeout?.aborted || options.signal?.aborted) throw error;
      throw new WaitTimeoutError(`${jobId} has not ended in time; it goes on`);
    }
  }

  async #ended(jobId: string, signal: AbortSignal | undefined): Promise<Job> {
    const options = { signal };
    try {
      for await (const event of this.events(jobId, options)) if (isEnd(event)) return event.job;
    } catch (error) {
      // As many follow jobs there as may.
      if (!(error instanceof BusyError)) throw error;
    }
    for (;;) {
      const job = await this.job(jobId, options);
      if (["complete", "failed", "cancelled"].includes(job.state)) return job;
      await pause(POLL_MS, signal);
    }
  }

  async #submit(path: string, job: object, options: SubmitOptions): Promise<Submitted> {
    const headers = { "idempotency-key": options.idempotencyKey, traceparent: options.traceparent };
    return this.#send({ method: "POST", path, headers, body: bodyOf(job), signal: options.signal }, submitted);
  }

  #request(call: Call): Promise<Response> {
    const headers = new Headers();
    if (this.#token !== undefined) headers.set("authorization", `Bearer ${this.#token}`);
    if (typeof call.body === "string") headers.set("content-type", "application/json");
    for (const [name, value] of Object.entries(call.headers ?? {})) if (value !== undefined) headers.set(name, value);
    return this.#fetch(`${this.#base}/${call.path}`, {
      method: call.method,
      headers,
      body: call.body ?? null,
      signal: call.signal ?? null,
    });
  }

  async #send<Answer>(call: Call, read: (response: Response) => Promise<Answer>): Promise<Answer> {
    for (let attempt = 0; ; attempt += 1) {
      let pauseMs: number | undefined;
      try {
        const signal = either(AbortSignal.timeout(call.timeoutMs ?? this.#timeoutMs), call.signal);
        const response = await this.#request({ ...call, signal });
        if (response.ok) return await read(response);
        throw await errorOf(response);
      } catch (error) {
        call.signal?.throwIfAborted();
        if (error instanceof ApiError) {
          pauseMs = afterAnswer(this.#retry, error, attempt);
          if (pauseMs === undefined) throw error;
        } else {
          if (!isLoss(error)) throw error;
          pauseMs = afterLoss(this.#retry, error, attempt, !call.isOnce);
          if (pauseMs === undefined) throw this.#unreachable(error);
        }
      }
      await pause(pauseMs, call.signal);
    }
  }

  #unreachable(cause: unknown): HostUnreachableError {
    return new HostUnreachableError(`${this.#base} does not answer: ${cause instanceof Error ? cause.message : "it says nothing"}`, { cause });
  }
}

async function json<Answer>(response: Response): Promise<Answer> {
  return (await response.json()) as Answer;
}

async function submitted(response: Response): Promise<Submitted> {
  const answer = await json<Accepted | AlreadyComplete>(response);
  return {
    jobId: answer.job_id,
    status: answer.status,
    message: answer.message,
    result: "result" in answer ? answer.result : undefined,
    isReplayed: response.headers.get("idempotent-replayed") === "true",
  };
}

async function receivedImage(response: Response): Promise<ReceivedImage> {
  const took = response.headers.get("x-inference-time-ms");
  return {
    bytes: new Uint8Array(await response.arrayBuffer()),
    contentType: response.headers.get("content-type") ?? "application/octet-stream",
    jobId: response.headers.get("x-job-id") ?? undefined,
    inferenceTimeMs: took === null ? undefined : Number(took),
  };
}

async function* texts(response: Response): AsyncGenerator<string, void, undefined> {
  if (!response.body) return;
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield decoder.decode(part.value, { stream: true });
}

/** What fetch says where no answer came or it broke off, and what our own time limits say. */
function isLoss(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof DOMException && ["AbortError", "TimeoutError"].includes(error.name));
}

function either(one: AbortSignal, other: AbortSignal | undefined): AbortSignal {
  return other ? AbortSignal.any([one, other]) : one;
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  signal?.throwIfAborted();
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
