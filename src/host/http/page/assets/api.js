/** The host's HTTP API: the token, errors as the host says them, server-sent events over fetch. */

const TOKEN = 'atelier.token';

/** What the host said went wrong. */
export class ApiError extends Error {
  /** @param {number} status @param {any} body */
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message ?? `the host answered ${status}`);
    this.status = status;
    /** @type {string|undefined} */
    this.code = error.code;
    /** @type {string|undefined} */
    this.field = error.field;
    this.body = body;
  }

  /** The field and the problem, as the host says them. */
  get text() {
    if (!this.field || this.message.startsWith(this.field)) return this.message;
    return `${this.field}: ${this.message}`;
  }
}

/** What went wrong, in words. @param {any} error */
export function told(error) {
  if (error instanceof ApiError) return error.text;
  if (error instanceof TypeError) return 'The host does not answer. Is it running?';
  return String(error?.message ?? error);
}

/** @type {(problem: string) => Promise<string|null>} */
let ask = async () => null;
/** Everyone who is refused at the same moment waits for one answer. @type {Promise<string|null>|null} */
let asking = null;
let declined = false;

/** @param {typeof ask} how asks the person for the token; null: they will not say. */
export function onUnauthorized(how) { ask = how; }

/** A token out of the address, which `atelier demo --serve` prints. It leaves the address bar at once. */
export function takeTokenFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const token = given.get('token');
  if (!token) return;
  sessionStorage.setItem(TOKEN, token);
  given.delete('token');
  history.replaceState(null, '', `${location.pathname}${given.size ? `#${given}` : ''}`);
}

/** No header takes other characters: what was pasted is no token of a host. */
const UNSENT = { error: { message: 'The token has characters that no token has: copy it again, without quotation marks around it.' } };

/** @param {string} path @param {RequestInit} init @param {string|null} token @returns {Promise<Response|null>} null: it was not sent */
async function send(path, init, token) {
  if (token && !/^[\x21-\x7e]+$/.test(token)) return null;
  const headers = new Headers(init.headers);
  if (token) headers.set('authorization', `Bearer ${token}`);
  return fetch(path, { ...init, headers, cache: 'no-store' });
}

/**
 * @param {string} path @param {RequestInit & {quiet?: boolean}} [options] quiet: nobody is asked again who has declined
 * @returns {Promise<Response>} one that says yes
 */
export async function request(path, options = {}) {
  const { quiet = false, ...init } = options;
  if (!quiet) declined = false;
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await send(path, init, token);
    if (response?.ok) return response;
    const error = response ? new ApiError(response.status, await response.json().catch(() => null)) : new ApiError(401, UNSENT);
    if (error.status !== 401 || declined) throw error;
    // Another request may have brought a new one meanwhile.
    if (sessionStorage.getItem(TOKEN) !== token) continue;
    asking ??= ask(token ? error.text : '').finally(() => { asking = null; });
    const given = await asking;
    if (given === null) {
      declined = true;
      throw error;
    }
    sessionStorage.setItem(TOKEN, given);
  }
}

/** @param {string} path @param {RequestInit & {quiet?: boolean}} [options] @returns {Promise<any>} */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** @param {string} path @param {any} body */
export function post(path, body) {
  return json(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
}

/** What the host says whether or not it is ready: `/test` answers 503 with a body. @param {string} path */
export async function status(path) {
  return (await fetch(path, { cache: 'no-store' })).json();
}

/** @param {string} path @returns {Promise<string>} */
export async function text(path) {
  const response = await fetch(path, { cache: 'no-store' });
  return response.text();
}

/**
 * The events of a job from the one after `last` on, with previews, which have no id; ends when the host closes the stream.
 * @param {string} id @param {string|null} last @param {AbortSignal} signal
 * @returns {AsyncGenerator<{id: string|null, name: string, job: any}>}
 */
export async function* events(id, last, signal) {
  const headers = last === null ? {} : { 'last-event-id': last };
  const response = await request(`/jobs/${encodeURIComponent(id)}/events?previews=true`, { headers, signal });
  // 204: the end was heard before.
  if (!response.body || response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop() ?? '';
    for (const part of parts) {
      const event = { id: /** @type {string|null} */ (null), name: 'message', data: '' };
      for (const line of part.split('\n')) {
        const [, name, content] = /^(\w+): ?(.*)$/.exec(line) ?? [];
        if (name === 'id') event.id = content;
        else if (name === 'event') event.name = content;
        else if (name === 'data') event.data += content;
      }
      if (event.data) yield { id: event.id, name: event.name, job: JSON.parse(event.data) };
    }
  }
}
