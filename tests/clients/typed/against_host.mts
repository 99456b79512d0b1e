// Our TypeScript client against a host of both bundled models. usage: against_host.mjs URL TOKEN DIR (with person.png and garment.png)
import {
  AlreadyEndedError,
  ApiError,
  BusyError,
  Client,
  ConflictError,
  HostUnreachableError,
  InvalidRequestError,
  JobCancelledError,
  NotFoundError,
  UnauthorizedError,
  UnavailableError,
  WaitTimeoutError,
  type EditForm,
  type Generate,
  type InferForm,
  type JobEvent,
  type Result,
  type TryOn,
  type TryOnForm,
  type TryOnFormJson,
} from "atelier-client";

declare const process: { argv: string[]; getBuiltinModule(name: "fs"): { readFileSync(path: string): Uint8Array } };

const [url = "", token = "", images = ""] = process.argv.slice(2);
const [person, garment] = ["person", "garment"].map((name) => process.getBuiltinModule("fs").readFileSync(`${images}/${name}.png`)) as [
  Uint8Array,
  Uint8Array,
];
const LIMIT = { timeoutMs: 120_000 };
const client = new Client(`${url}/`, { token });

function ok(truth: unknown, what: unknown): asserts truth {
  if (!truth) throw new Error(typeof what === "string" ? what : JSON.stringify(what));
}

function job(jobId: string, steps = 2): Generate {
  const callback = { metadata: { user_id: "Ada – Zoë" } };
  return { job_id: jobId, prompt: "a red mug on the beach", steps, width: 64, height: 64, callback };
}

async function refused<E extends Error>(kind: abstract new (...all: never[]) => E, call: () => Promise<unknown>): Promise<E> {
  let answer: unknown;
  try {
    answer = await call();
  } catch (error) {
    if (error instanceof Error && error.constructor === kind) return error as E;
    throw new Error(`${String(error)} is no ${kind.name}`, { cause: error });
  }
  throw new Error(`${JSON.stringify(answer)}, and no ${kind.name}`);
}

async function all(events: AsyncIterable<JobEvent>): Promise<JobEvent[]> {
  const seen: JobEvent[] = [];
  for await (const event of events) seen.push(event);
  return seen;
}

const isPng = (bytes: Uint8Array) => [0x89, 0x50, 0x4e, 0x47].every((byte, index) => bytes[index] === byte);
/** Addresses are signed anew each time; the files stay. */
const keys = (result: Result | null | undefined) => JSON.stringify(result?.images.map((image) => image.key));
const dataOf = (bytes: Uint8Array) => `data:image/png;base64,${btoa(String.fromCharCode(...bytes))}`;

/** A client whose answers `becomes` changes, and what it has sent. */
function unsteady(becomes: (count: number, response: Response) => Response | Promise<Response>): [Client, { url: string; last: string | null }[]] {
  const sent: { url: string; last: string | null }[] = [];
  const through: typeof fetch = async (input, init) => {
    sent.push({ url: String(input), last: new Headers(init?.headers).get("last-event-id") });
    return becomes(sent.length, await fetch(input, init));
  };
  return [new Client(url, { token, fetch: through }), sent];
}

async function lost(response: Response): Promise<Response> {
  await response.arrayBuffer();
  throw new TypeError("the answer is lost");
}

/** The stream is lost after its first event. */
function breaksOff(response: Response): Response {
  let seen = "";
  const broken = new TransformStream<Uint8Array, Uint8Array>({
    transform(chunk, controller) {
      if (seen.includes("\n\n")) controller.error(new TypeError("the connection is lost"));
      else controller.enqueue(chunk);
      seen += new TextDecoder().decode(chunk);
    },
  });
  return new Response(response.body?.pipeThrough(broken) ?? null, { headers: response.headers });
}

async function generates(): Promise<void> {
  ok((await client.ready()).status === "hot", "it is ready");
  const model = (await client.models()).find(({ name }) => name === "tiny-sd");
  ok(model?.tasks[0] === "generate" && model.defaults !== undefined, model);
  const taken = await client.generate(job("ts-1"));
  ok(taken.status === "accepted" && taken.jobId === "ts-1" && taken.result === undefined, taken);
  const done = await client.wait("ts-1", LIMIT);
  ok(done.state === "complete" && done.progress === 100, done);
  const image = await client.image("ts-1");
  ok(isPng(image.bytes) && image.contentType === "image/png" && image.bytes.length === done.result?.images[0]?.bytes, done);
  ok((await client.jobs()).some((listed) => listed.job_id === "ts-1"), "it is listed");
  const again = await client.generate(job("ts-1"));
  ok(again.status === "complete" && keys(again.result) === keys(done.result) && !again.isReplayed, again);
  const conflict = await refused(ConflictError, () => client.generate(job("ts-1", 3)));
  ok(conflict.status === 409 && conflict.code === "conflict", conflict);
  ok((await refused(NotFoundError, () => client.image("ts-1", 7))).status === 404, "no such image");
  const now = await client.infer(job("ts-2"));
  ok(isPng(now.bytes) && now.jobId === "ts-2" && (now.inferenceTimeMs ?? 0) > 0, now);
  await client.generate(job("ts-3"), { idempotencyKey: "key-of-typescript" });
  await client.wait("ts-3", LIMIT);
  ok((await client.generate(job("ts-3"), { idempotencyKey: "key-of-typescript" })).isReplayed, "it is replayed");
}

async function editsAndTriesOn(): Promise<void> {
  const form: EditForm = { job_id: "ts-e1", prompt: "x", image: [person, new Blob([new Uint8Array(garment)])], steps: 1, width: 64, height: 64 };
  await client.edit(form);
  await client.edit({ job_id: "ts-e2", prompt: "x", images: [dataOf(person)], steps: 1, width: 64, height: 64 });
  const tryon: TryOnForm = { job_id: "ts-t1", masked_user_image: person, garment_image: garment, config: { seed: 7, steps: 1 } };
  await client.tryon(tryon);
  const byAddress: TryOn = { job_id: "ts-t2", person: dataOf(person), garments: [dataOf(garment)], steps: 1 };
  await client.tryon(byAddress);
  const twin: TryOnFormJson = { job_id: "ts-t3", masked_user_image: dataOf(person), garment_image: dataOf(garment), config: { steps: 1 } };
  await client.tryon(twin);
  for (const jobId of ["ts-e1", "ts-e2", "ts-t1", "ts-t2", "ts-t3"]) {
    const done = await client.wait(jobId, LIMIT);
    ok(done.result?.model === "tiny-edit", done);
  }
  ok((await client.job("ts-t1")).result?.images[0]?.seed === 7, "its config counts");
  // One who waits has to say the task: the client does.
  ok(isPng((await client.infer({ ...byAddress, job_id: "ts-t4" })).bytes), "a try-on now");
  ok(isPng((await client.infer({ job_id: "ts-e4", prompt: "x", images: [dataOf(person)], steps: 1 })).bytes), "an edit now");
  const now: InferForm = { job_id: "ts-t5", masked_user_image: person, garment_image: garment, steps: 1, prompt: "a shirt" };
  ok(isPng((await client.infer(now)).bytes), "a form now");
  const broken: EditForm = { job_id: "ts-e5", prompt: "x", image: [new Uint8Array(8)] };
  ok((await refused(InvalidRequestError, () => client.edit(broken))).field === "image", "no image");
}

async function follows(): Promise<void> {
  await client.generate(job("ts-f1", 20));
  const seen: JobEvent[] = [];
  for await (const event of client.events("ts-f1")) {
    seen.push(event);
    if (event.name === "step") break;
  }
  const rest = await all(client.events("ts-f1", { lastEventId: seen.at(-1)?.id ?? "" }));
  const ids = [...seen, ...rest].map((event) => event.id);
  ok(new Set(ids).size === ids.length, `an event came twice: ${ids}`);
  const end = rest.at(-1);
  ok(end?.name === "complete" && end.job.result, rest);
  ok((await all(client.events("ts-f1", { lastEventId: end.id }))).length === 0, "nothing comes after the end");
  ok((await refused(NotFoundError, () => all(client.events("no-such-job")))).status === 404, "no such job");

  // The connection is lost after the first event: the client goes on where it was.
  await client.generate(job("ts-f2", 40));
  const [broken, sent] = unsteady((count, response) => (count <= 2 ? breaksOff(response) : response));
  const events = await all(broken.events("ts-f2"));
  ok(events.at(-1)?.name === "complete" && new Set(events.map((event) => event.id)).size === events.length, events);
  ok(sent.length === 3 && sent[0]?.last === null && sent[1]?.last === events[0]?.id && events.some((event) => event.id === sent[2]?.last), sent);

  const stop = new AbortController();
  await client.generate(job("ts-f3", 200));
  const following = all(client.events("ts-f3", { signal: stop.signal }));
  stop.abort(new RangeError("its reader has gone"));
  await refused(RangeError, () => following);
  await client.cancel("ts-f3");
}

async function isRefused(): Promise<void> {
  // @ts-expect-error: a field that there is not.
  await refused(InvalidRequestError, () => client.generate({ ...job("ts-r1"), stepps: 1 }));
  const error = await refused(InvalidRequestError, () => client.generate(job("ts-r1", 0)));
  ok(error.status === 400 && error.code === "invalid_request" && error.field === "steps", error);
  ok(error.detail.includes("200") && error.message.includes("steps: ") && error.requestId !== undefined && error.name === "InvalidRequestError", error);
  const stranger = new Client(url, { token: "another token of 32 characters..." });
  for (const call of [() => stranger.generate(job("ts-r2")), () => all(stranger.events("ts-1")), () => stranger.image("ts-1")]) {
    ok((await refused(UnauthorizedError, call)).code === "unauthorized", "a stranger");
  }
  const unsendable = await refused(RangeError, async () => new Client(url, { token: `${token}\n` }));
  ok(unsendable.message.includes("printable ASCII") && !unsendable.message.includes(token), unsendable.message);
  const nobody = new Client("http://127.0.0.1:9", { retry: { maxRetries: 0 } });
  ok((await refused(HostUnreachableError, () => nobody.jobs())).cause instanceof TypeError, "nobody is there");
  await refused(HostUnreachableError, () => nobody.wait("ts-1"));
}

async function cancels(): Promise<void> {
  await client.generate(job("ts-c1", 200));
  ok((await refused(WaitTimeoutError, () => client.wait("ts-c1", { timeoutMs: 300 }))).message.includes("ts-c1"), "it says which");
  ok(["queued", "running"].includes((await client.job("ts-c1")).state), "it goes on");
  ok((await client.cancel("ts-c1")).status === "cancelling", "it is being cancelled");
  ok((await refused(JobCancelledError, () => client.wait("ts-c1", LIMIT))).job.state === "cancelled", "it is cancelled");
  ok((await refused(AlreadyEndedError, () => client.cancel("ts-c1"))).state === "cancelled", "it was cancelled");
  const complete = await refused(AlreadyEndedError, () => client.cancel("ts-1"));
  ok(complete.state === "complete" && complete.result?.image_urls[0], complete);
}

async function comesAgain(): Promise<void> {
  // Its answer is lost: the job is handed in again, and is one job.
  const [losing, sent] = unsteady((count, response) => (count === 1 ? lost(response) : response));
  ok((await losing.generate(job("ts-a1"))).jobId === "ts-a1" && sent.length === 2, sent);
  ok((await client.jobs()).filter((listed) => listed.job_id === "ts-a1").length === 1, "one job");
  await client.wait("ts-a1", LIMIT);
  // Nobody is asked twice to generate now, nor to cancel.
  for (const call of [(one: Client) => one.infer(job("ts-a2")), (one: Client) => one.cancel("ts-a1")]) {
    const [once, sentOnce] = unsteady((_, response) => lost(response));
    await refused(HostUnreachableError, () => call(once));
    ok(sentOnce.length === 1, sentOnce);
  }
  const body = JSON.stringify({ error: { code: "busy", message: "later" } });
  for (const [status, kind] of [[429, BusyError], [503, UnavailableError]] as const) {
    const answers = (headers: Record<string, string>) =>
      unsteady((count, response) => (count === 1 ? new Response(body, { status, headers }) : response));
    const [waiting, twice] = answers({ "retry-after": "0" });
    ok((await waiting.job("ts-1")).state === "complete" && twice.length === 2, twice);
    // Without the host's word there is no second time, nor where it is a long one.
    for (const headers of [{}, { "retry-after": "3600" }] as Record<string, string>[]) {
      const [turnedAway, once] = answers(headers);
      ok((await refused(kind, () => turnedAway.job("ts-1"))).detail === "later" && once.length === 1, once);
    }
  }
  const [gateway] = unsteady(() => new Response("<html>bad gateway", { status: 502 }));
  ok((await refused(ApiError, () => gateway.job("ts-1"))).detail === "<html>bad gateway", "not ours");
  // More follow jobs than may: who waits asks for the job instead.
  const [full, asked] = unsteady((count, response) => (count === 1 ? new Response("", { status: 429, headers: { "retry-after": "5" } }) : response));
  ok((await full.wait("ts-1")).state === "complete" && asked[1]?.url.endsWith("/jobs/ts-1"), asked);
}

for (const scenario of [generates, editsAndTriesOn, follows, isRefused, cancels, comesAgain]) await scenario();
console.log("all of it");
