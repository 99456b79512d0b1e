// Receives webhooks, verifies them and drops repetitions: node receiver.mjs [PORT], without packages.
//
// Reads WEBHOOK_SIGNING_SECRET. Let atelier send here with BACKEND_API_URL=http://127.0.0.1:PORT.

import { createServer } from "node:http";
import { createHmac, timingSafeEqual } from "node:crypto";

const SECRET = process.env.WEBHOOK_SIGNING_SECRET;
if (!SECRET) throw new Error("set WEBHOOK_SIGNING_SECRET");
const MAX_BODY_BYTES = 1 << 20;
const MAX_SEEN = 100_000;
// Ids that were handled. Keep them in your database, for as long as your queue keeps messages.
const seen = new Set();

/** Throws unless `body` (a Buffer) was signed with `secret` (whsec_...) within the tolerance. */
export function verify(secret, headers, body, toleranceS = 300) {
  const stamp = headers["webhook-timestamp"];
  if (!(Math.abs(Date.now() / 1000 - Number(stamp)) <= toleranceS)) throw new Error("too old, or from the future");
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${stamp}.`), body]);
  const expected = Buffer.from("v1," + createHmac("sha256", key).update(signed).digest("base64"));
  // There may be several, while a key is changed.
  const matches = headers["webhook-signature"].split(" ").some((given) => {
    const bytes = Buffer.from(given);
    return bytes.length === expected.length && timingSafeEqual(bytes, expected);
  });
  if (!matches) throw new Error("the signature does not match");
}

/** Your code. Put slow work into a queue of your own: the sender waits for the answer. */
function handle(event) {
  const details = event.image_urls ?? event.error ?? `${event.progress} %`;
  console.log(event.type, event.job_id, JSON.stringify(details));
}

/** The raw bytes: what is verified must be what was sent. */
async function read(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function status(request) {
  if (!["POST", "PATCH"].includes(request.method)) return 405;
  const body = await read(request);
  if (body === null) return 413;
  try {
    verify(SECRET, request.headers, body);
  } catch (error) {
    console.error(`refused: ${error.message}`);
    return 401;
  }
  const id = request.headers["webhook-id"];
  if (!seen.has(id)) {
    handle(JSON.parse(body.toString()));
    // Only now: what failed comes again. A Set keeps the order of insertion, so the first is the oldest.
    seen.add(id);
    if (seen.size > MAX_SEEN) seen.delete(seen.values().next().value);
  }
  return 204;
}

const server = createServer(async (request, response) => {
  try {
    response.writeHead(await status(request)).end();
  } catch (error) {
    console.error(error);
    response.writeHead(500).end();
  }
});
server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
