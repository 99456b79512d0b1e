// Our TypeScript verifier on what a host has sent. usage: webhooks.mjs FILE, which has {"secret", "sent": [{"headers", "body"}]}
import { UnknownWebhookError, WebhookVerificationError, WebhookVerifier, type WebhookHeaders } from "atelier-client";

declare const process: { argv: string[]; getBuiltinModule(name: "fs"): { readFileSync(path: string, encoding: "utf8"): string } };

interface Sent {
  headers: Record<string, string>;
  body: string;
}
const asked = JSON.parse(process.getBuiltinModule("fs").readFileSync(process.argv[2] ?? "", "utf8")) as { secret: string; sent: Sent[] };
const OTHER = `whsec_${btoa("another secret of 32 characters.")}`;

function ok(truth: unknown, what: unknown): asserts truth {
  if (!truth) throw new Error(typeof what === "string" ? what : JSON.stringify(what));
}

async function refused(
  verifier: WebhookVerifier,
  body: string,
  headers: WebhookHeaders,
  says: string,
  kind: typeof WebhookVerificationError | typeof UnknownWebhookError = WebhookVerificationError,
): Promise<void> {
  const accepted = await verifier.verify(body, headers).catch((error: unknown) => {
    ok(error instanceof kind && error.message.includes(says), `${String(error)}, and not ${says}`);
  });
  ok(accepted === undefined, `accepted: ${JSON.stringify(accepted)}`);
}

async function signed(body: string, stamp: number): Promise<Record<string, string>> {
  const key = Uint8Array.from(atob(asked.secret.slice(6)), (character) => character.charCodeAt(0));
  const hmac = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const digest = await crypto.subtle.sign("HMAC", hmac, new TextEncoder().encode(`id-1.${stamp}.${body}`));
  const signature = `v1,${btoa(String.fromCharCode(...new Uint8Array(digest)))}`;
  return { "webhook-id": "id-1", "webhook-timestamp": String(stamp), "webhook-signature": signature };
}

const own = new WebhookVerifier(asked.secret);
const other = new WebhookVerifier(OTHER);
const seen = new Set<string>();
for (const { headers, body } of asked.sent) {
  const webhook = await own.verify(new TextEncoder().encode(body), headers);
  const { event } = webhook;
  seen.add(event.type);
  ok(webhook.id === headers["webhook-id"] && Math.abs(webhook.timestamp - Date.now() / 1000) < 300, webhook);
  if (event.type === "inference.complete") {
    ok(event.image_urls[0] === event.images[0]?.url && event.metadata["user_id"] === "Ada – Zoë", event);
  } else if (event.type === "inference.failed") {
    ok(event.error.code === "cancelled", event);
  } else {
    ok(event.progress >= 0 && event.progress <= 90, event);
  }

  const same = async (verifier: WebhookVerifier, given: WebhookHeaders) => {
    ok((await verifier.verify(body, given)).id === webhook.id, "it is accepted");
  };
  // While a secret is replaced, both count, on either side.
  await same(new WebhookVerifier([OTHER, asked.secret]), headers);
  await same(own, { ...headers, "webhook-signature": `v1,${btoa("\0".repeat(32))} ${headers["webhook-signature"]}` });
  await same(own, new Headers(headers));
  await same(own, Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toUpperCase(), value])));
  // Anything else in it, and it is not the host's.
  await refused(other, body, headers, "signature");
  await refused(own, body.replace("inference", "Inference"), headers, "signature");
  await refused(own, `${body} `, headers, "signature");
  await refused(own, "", headers, "signature");
  const without = { ...headers, "webhook-id": "id-1" };
  await refused(own, body, without, "signature");
  await refused(own, body, { ...headers, "webhook-timestamp": String(webhook.timestamp + 1) }, "signature");
  await refused(own, body, { ...headers, "webhook-timestamp": "1700000000" }, "too old");
  await refused(own, body, { ...headers, "webhook-timestamp": "9".repeat(5000) }, "no number");
  await refused(own, body, { ...headers, "webhook-timestamp": "soon" }, "no number");
  await refused(own, body, { ...headers, "webhook-signature": headers["webhook-signature"]?.replace("v1,", "v2,") }, "signature");
  await refused(own, body, { ...headers, "webhook-signature": "v1,– –" }, "signature");
  for (const name of Object.keys(headers)) await refused(own, body, { ...headers, [name]: undefined }, name);
}
ok(seen.size === 3, [...seen]);

// Signed as it should be, and sent again by someone who has heard it.
const progress = '{"type":"inference.progress","job_id":"a","progress":25,"metadata":{}}';
const now = Math.floor(Date.now() / 1000);
ok((await own.verify(progress, await signed(progress, now))).event.job_id === "a", "it is accepted");
await refused(own, progress, await signed(progress, now - 310), "too old");
await refused(own, progress, await signed(progress, now + 310), "future");
const patient = new WebhookVerifier(asked.secret, { toleranceSeconds: 600 });
ok((await patient.verify(progress, await signed(progress, now - 310))).timestamp === now - 310, "it is accepted");
await refused(own, "{}", await signed("{}", now), "of no type", UnknownWebhookError);
await refused(own, "{", await signed("{", now), "no JSON", UnknownWebhookError);
for (const wrong of ["", asked.secret.slice(6), "whsec_c2hvcnQ=", "whsec_ – "]) {
  let said = "";
  try {
    new WebhookVerifier(wrong);
  } catch (error) {
    said = error instanceof RangeError ? error.message : "";
  }
  ok(said.includes("whsec_ and the base64 form") && (wrong === "" || !said.includes(wrong)), `${wrong} is taken for a secret`);
}
console.log("all of it");
