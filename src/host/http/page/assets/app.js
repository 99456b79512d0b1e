/** Puts the page together: which view is shown, which job is followed, when the host is asked. */

import { json, onUnauthorized, post, request, status, takeTokenFromAddress, told } from './api.js';
import { byId, delay, say } from './dom.js';
import { follow } from './follow.js';
import { Form, newId, randomSeed } from './form.js';
import { Jobs } from './jobs.js';
import { recall, remember } from './memory.js';
import { Result } from './result.js';
import { System } from './system.js';

const POLL_MS = 2_000;

const system = new System();
const jobs = new Jobs({ show, cancel });
const result = new Result({ cancel, repeat, reuse });
const form = new Form(submit);
let following = new AbortController();

/** @param {string} problem with the token that was sent; empty: none was */
function askForToken(problem) {
  const dialog = /** @type {HTMLDialogElement} */ (byId('token-dialog'));
  const input = /** @type {HTMLInputElement} */ (byId('token'));
  say(byId('token-error'), problem);
  input.value = '';
  dialog.showModal();
  input.focus();
  return /** @type {Promise<string|null>} */ (new Promise((resolve) => {
    byId('token-form').onsubmit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      resolve(input.value.trim());
      dialog.close();
    };
    byId('token-cancel').onclick = () => dialog.close();
    dialog.onclose = () => resolve(null);
  }));
}

/** @param {string} path @param {any} body */
async function submit(path, body) {
  const id = newId();
  await post(path, { job_id: id, ...body });
  await remember(id, path, body);
  show(id);
  jobs.refresh();
}

/** Follows a job, also one that another browser has asked for. @param {string} id */
async function show(id) {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  history.replaceState(null, '', `#job=${encodeURIComponent(id)}`);
  const asked = await recall(id);
  if (signal.aborted) return;
  result.begin(id, asked);
  byId('now').scrollIntoView({ block: 'nearest' });
  try {
    await follow(id, { event: (name, job) => (name === 'preview' ? result.preview(job) : result.update(name, job)), lost: (error) => result.lost(error) }, signal);
  } catch (error) {
    result.over(error);
  }
  jobs.refresh();
}

/** @param {string} id */
async function cancel(id) {
  try {
    await request(`/jobs/${encodeURIComponent(id)}`, { method: 'DELETE' });
  } catch (error) {
    if (result.id === id) result.refused(error);
    else say(byId('jobs-error'), told(error));
  }
  jobs.refresh();
}

/** @param {string} id */
async function repeat(id) {
  const asked = await recall(id);
  if (!asked) return;
  await submit(asked.path, { ...asked.body, seed: randomSeed() }).catch((error) => result.refused(error));
}

/** @param {string} id */
async function reuse(id) {
  const asked = await recall(id);
  if (!asked) return;
  await form.restore(asked.path, asked.body);
  byId('prompt').focus();
}

/** @param {'create'|'system'} view */
function open(view) {
  for (const name of ['create', 'system']) {
    byId(name).hidden = name !== view;
    if (name === view) byId(`show-${name}`).setAttribute('aria-current', 'page');
    else byId(`show-${name}`).removeAttribute('aria-current');
  }
  if (view === 'system') system.refresh();
}

async function readiness() {
  const badge = byId('readiness');
  const shown = await status('/test').then(
    (test) => ({ words: test.reason ? `${test.status}: ${test.reason}` : 'ready', state: test.status }),
    (error) => ({ words: told(error), state: 'failed' }),
  );
  // A live region speaks when it changes, so it only changes when there is something to say.
  if (badge.textContent !== shown.words) badge.textContent = shown.words;
  badge.className = `badge ${shown.state}`;
}

/** What a job may say, which stays the same for as long as the host runs. @type {any} */
let api = null;

/** Which models there are, and what their handlers say that they can do. */
async function models() {
  try {
    api ??= await status('/openapi.json');
    form.setUp((await status('/models')).models, api);
  } catch {
    // How the host is says the badge.
  }
}

function showNamed() {
  takeTokenFromAddress();
  const id = new URLSearchParams(location.hash.slice(1)).get('job');
  if (id && id !== result.id) show(id);
}

async function start() {
  takeTokenFromAddress();
  onUnauthorized(askForToken);
  byId('show-create').addEventListener('click', () => open('create'));
  byId('show-system').addEventListener('click', () => open('system'));
  addEventListener('hashchange', showNamed);
  await models();
  showNamed();
  // Whether a token is needed is known once one was asked for.
  await json('/jobs').catch((error) => say(byId('jobs-error'), told(error)));
  for (;;) {
    if (document.visibilityState === 'visible') {
      await Promise.all([readiness(), jobs.refresh(), system.refresh(), models()]);
    }
    await delay(POLL_MS);
  }
}

start();
