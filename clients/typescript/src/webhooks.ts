// Webhooks: which of them the host has sent, and what they say. docs/webhooks.md has the rules.
import { UnknownWebhookError, WebhookVerificationError } from "./errors.js";
import type { WebhookComplete, WebhookFailed, WebhookProgress } from "./schema.js";

export type WebhookEvent = WebhookProgress | WebhookComplete | WebhookFailed;

/** A webhook that the host has sent. */
export interface Webhook {
  /** The same for every repetition: drop one that you have seen. */
  id: string;
  /** Seconds since 1970, when it was sent. */
  timestamp: number;
  event: WebhookEvent;
}

/** Those of fetch, or of Node's `request.headers`. */
export type WebhookHeaders = Headers | Record<string, string | string[] | undefined>;

const TYPES: Record<WebhookEvent["type"], true> = {
  "inference.progress": true,
  "inference.complete": true,
  "inference.failed": true,
};
const HMAC = { name: "HMAC", hash: "SHA-256" };

/** Verifies webhooks by Standard Webhooks (`webhook-id`, `webhook-timestamp`, `webhook-signature`). */
export class WebhookVerifier {
  readonly #secrets: Uint8Array<ArrayBuffer>[];
  readonly #toleranceSeconds: number;
  #keys: Promise<CryptoKey[]> | undefined;

  /**
   * `secrets`: `whsec_...`, as the host has it; several while one is replaced by another.
   * Throws a RangeError where one is no such secret.
   */
  constructor(secrets: string | readonly string[], options: { toleranceSeconds?: number } = {}) {
    this.#secrets = (typeof secrets === "string" ? [secrets] : secrets).map(keyOf);
    if (this.#secrets.length === 0) throw new RangeError("there is no secret: give at least one");
    this.#toleranceSeconds = options.toleranceSeconds ?? 300;
  }

  /**
   * The webhook with this raw body, as it came, before anything has parsed it.
   * Throws a WebhookVerificationError unless it is signed with one of the secrets, within the tolerance; an UnknownWebhookError
   * where it is, and is nothing that this version knows.
   */
  async verify(body: Uint8Array | ArrayBuffer | string, headers: WebhookHeaders): Promise<Webhook> {
    const id = header(headers, "webhook-id");
    const stamp = header(headers, "webhook-timestamp");
    const signatures = header(headers, "webhook-signature").split(" ");
    if (!/^[0-9]{1,15}$/.test(stamp)) throw new WebhookVerificationError("webhook-timestamp is no number of seconds");
    if (!(Math.abs(Date.now() / 1000 - Number(stamp)) <= this.#toleranceSeconds)) {
      throw new WebhookVerificationError("it is too old, or from the future");
    }
    const bytes = typeof body === "string" ? new TextEncoder().encode(body) : new Uint8Array(body);
    const head = new TextEncoder().encode(`${id}.${stamp}.`);
    const signed = new Uint8Array(head.length + bytes.length);
    signed.set(head);
    signed.set(bytes, head.length);
    // WebCrypto compares in constant time; every pair is compared, so that how long it takes says nothing.
    const offered = signatures.map((signature) => (signature.startsWith("v1,") ? decoded(signature.slice(3)) : undefined));
    const keys = await this.#imported();
    const pairs = keys.flatMap((key) => offered.map((one) => one && crypto.subtle.verify(HMAC, key, one, signed)));
    if (!(await Promise.all(pairs)).includes(true)) throw new WebhookVerificationError("the signature does not match");
    return { id, timestamp: Number(stamp), event: eventOf(bytes) };
  }

  #imported(): Promise<CryptoKey[]> {
    const one = (secret: Uint8Array<ArrayBuffer>) => crypto.subtle.importKey("raw", secret, HMAC, false, ["verify"]);
    return (this.#keys ??= Promise.all(this.#secrets.map(one)));
  }
}

function keyOf(secret: string): Uint8Array<ArrayBuffer> {
  const key = secret.startsWith("whsec_") ? decoded(secret.slice("whsec_".length)) : undefined;
  // A secret itself never stands in a message.
  if (!key || key.length < 24 || key.length > 64) throw new RangeError("a secret is whsec_ and the base64 form of 24 to 64 bytes");
  return key;
}

function decoded(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function header(headers: WebhookHeaders, name: string): string {
  const value = headers instanceof Headers ? headers.get(name) : Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  if (typeof value !== "string" || value === "") throw new WebhookVerificationError(`it has no ${name}`);
  return value;
}

function eventOf(bytes: Uint8Array): WebhookEvent {
  try {
    const event: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (typeof event === "object" && event !== null && "type" in event && Object.hasOwn(TYPES, String(event.type))) {
      return event as WebhookEvent;
    }
  } catch (cause) {
    throw new UnknownWebhookError("it is signed, and no JSON", { cause });
  }
  throw new UnknownWebhookError("it is signed, and of no type that this client knows");
}
