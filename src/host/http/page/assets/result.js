/** The job that is shown: how far it is, then its images and what is known of them. */

import { byId, el, say } from './dom.js';
import { ApiError, json, request, told } from './api.js';
import * as credentials from './credentials.js';
import { slider } from './slider.js';
import { hasEnded } from './follow.js';

/** The host's word for a job that its content policy does not allow. */
const BLOCKED = 'content_blocked';
/** In the order of the steps. */
const STEPS = ['fetch', 'screen', 'preprocess', 'mask', 'infer', 'postprocess', 'upscale', 'check', 'watermark', 'encode', 'credentials', 'store', 'notify'];

/** What a job's event means to the person who waits. @param {string} name @param {any} job */
export function inWords(name, job) {
  const words = {
    sending: 'On its way into the queue.',
    accepted: job.position > 0 ? `Waits for a handler: ${job.position} before it.` : 'Waits for a handler.',
    started: job.attempt > 1 ? `Running: attempt ${job.attempt}.` : 'Running.',
    step: `Step ${job.step} of ${job.steps}.`,
    waiting: `Attempt ${job.attempt} did not end well; the job waits for the next.`,
    complete: 'Complete.',
    failed: job.error?.code === BLOCKED ? 'Not allowed.' : 'Failed.',
    cancelled: 'Cancelled.',
  };
  return words[name] ?? job.state;
}

export class Result {
  /** @param {{cancel: (id: string) => void, repeat: (id: string) => void, reuse: (id: string) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.root = byId('result');
    /** @type {string[]} object addresses to give back */
    this.addresses = [];
    this.spoken = '';
  }

  /** @param {string} id @param {any} asked what was sent, where this browser knows it */
  begin(id, asked) {
    this.id = id;
    this.asked = asked;
    this.release();
    this.words = el('p', { className: 'words' }, 'Asking the host …');
    this.bar = el('progress', { max: 100, 'aria-label': 'Progress of the job' });
    this.error = el('p', { className: 'error', role: 'alert', hidden: true });
    this.attempts = el('ul', { className: 'quiet', 'aria-label': 'Attempts that did not end well', hidden: true });
    this.connection = el('p', { className: 'quiet', hidden: true });
    this.cancel = el('button', { type: 'button', onclick: () => this.actions.cancel(id) }, 'Cancel');
    this.soFar = el('img', { className: 'so-far', alt: '', hidden: true });
    this.body = el('div');
    this.root.replaceChildren(el('p', { className: 'quiet' }, 'Job ', el('code', {}, id)), this.words, this.bar, this.error,
      this.attempts, this.connection, el('div', { className: 'actions' }, this.cancel), this.soFar, this.body);
  }

  /** @param {string} name @param {any} job */
  update(name, job) {
    const words = inWords(name, job);
    this.words.textContent = words;
    say(this.connection);
    // A screen reader hears states, not every step.
    if (name !== 'step') this.announce(words);
    if (job.step !== null) this.bar.value = (100 * job.step) / job.steps;
    else if (name === 'sending' || name === 'accepted' || name === 'started') this.bar.removeAttribute('value');
    if (name !== 'step' && name !== 'complete') this.soFar.hidden = true;
    if (name === 'waiting' && job.error) this.attemptFailed(job);
    say(this.error, name === 'failed' && job.error ? new ApiError(0, { error: job.error }).text : '');
    if (!hasEnded(job.state)) return;
    this.bar.hidden = true;
    this.cancel.hidden = true;
    if (job.result) this.images(job.result).catch((error) => say(this.error, told(error)));
    // Another seed does not make it allowed before anything was generated.
    else this.body.replaceChildren(this.again(job.error?.code !== BLOCKED || !job.error.field));
  }

  /** What its first image looks like so far. @param {any} preview */
  preview({ step, steps, content_type, image }) {
    this.soFar.alt = `Preview after step ${step} of ${steps}`;
    this.soFar.src = `data:${content_type};base64,${image}`;
    this.soFar.hidden = false;
  }

  /** It stays to be read while the next attempt runs. @param {any} job */
  attemptFailed({ attempt, error }) {
    const line = `Attempt ${attempt}: ${new ApiError(0, { error }).text}`;
    if (this.attempts.lastElementChild?.textContent === line) return;
    this.attempts.append(el('li', {}, line));
    this.attempts.hidden = false;
  }

  /** The stream of events broke. @param {any} error */
  lost(error) { say(this.connection, `${told(error)} Trying again …`); }

  /** The host will say nothing more of it. @param {any} error */
  over(error) {
    this.bar.hidden = true;
    this.cancel.hidden = true;
    say(this.error, told(error));
    this.body.replaceChildren(this.again());
  }

  /** @param {any} error of a wish */
  refused(error) { say(this.error, told(error)); }

  announce(/** @type {string} */ words) {
    if (words === this.spoken) return;
    this.spoken = words;
    byId('announce').textContent = words;
  }

  /** @param {any} result of the job's document */
  async images(result) {
    const id = this.id;
    const files = await Promise.all(result.images.map(async (image, number) => {
      const blob = await (await request(`/jobs/${encodeURIComponent(id)}/images/${number}`)).blob();
      return { ...image, blob, number };
    }));
    if (this.id !== id) return;
    const before = this.asked?.body.person ?? this.asked?.body.images?.[0];
    const viewer = el('div', { className: 'viewer' });
    const facts = el('div');
    const choices = files.map((file) => {
      const address = URL.createObjectURL(file.blob);
      this.addresses.push(address);
      const small = el('img', { src: address, alt: `Image ${file.number + 1}` });
      return el('button', { type: 'button', className: 'small', 'aria-pressed': 'false', onclick: () => show(file.number) }, small);
    });
    const show = (/** @type {number} */ number) => {
      choices.forEach((choice, place) => choice.setAttribute('aria-pressed', String(place === number)));
      const file = files[number];
      const address = this.addresses[number];
      viewer.replaceChildren(this.figure(file, address, result.model, before));
      facts.replaceChildren(el('p', { className: 'quiet' }, 'Reading the file …'));
      this.facts(file, result).then((shown) => facts.replaceChildren(...shown)).catch((error) => say(this.error, told(error)));
    };
    this.body.replaceChildren(viewer, files.length > 1 ? el('div', { className: 'smalls' }, ...choices) : '', this.again(), facts);
    show(0);
    this.soFar.hidden = true;
  }

  /** @param {any} file @param {string} address @param {string} model @param {string|undefined} before */
  figure(file, address, model, before) {
    const prompt = this.asked?.body.prompt;
    const alt = prompt ? `Generated by ${model}: ${prompt}` : `Generated by ${model}`;
    const image = el('img', { src: address, alt, width: file.width, height: file.height });
    const extension = file.content_type.split('/')[1].replace('jpeg', 'jpg');
    const download = el('a', { href: address, download: `${this.id}-${file.number}.${extension}`, className: 'button' }, 'Download');
    const shown = el('div', { className: 'shown' }, image);
    const actions = el('div', { className: 'actions' }, download);
    // Images behind those that were asked for are comparisons already.
    if (before && file.number < (this.asked?.body.num_images ?? 1)) {
      const toggle = el('button', { type: 'button', 'aria-pressed': 'false' }, 'Before and after');
      toggle.addEventListener('click', () => {
        const compare = toggle.getAttribute('aria-pressed') === 'false';
        toggle.setAttribute('aria-pressed', String(compare));
        shown.replaceChildren(compare ? slider(before, address, file) : image);
        if (compare) shown.querySelector('input')?.focus();
      });
      actions.append(toggle);
    }
    return el('figure', {}, shown, el('figcaption', {}, `${file.width} × ${file.height}, seed ${file.seed}, ${model}`), actions);
  }

  /** @param {boolean} repeatable whether the same with another seed may end otherwise */
  again(repeatable = true) {
    const known = Boolean(this.asked);
    const hint = known ? null : el('p', { className: 'quiet' }, 'This browser does not know the request of this job.');
    return el('div', {}, el('div', { className: 'actions' },
      el('button', { type: 'button', disabled: !known || !repeatable, onclick: () => this.actions.repeat(this.id) }, 'Repeat with another seed'),
      el('button', { type: 'button', disabled: !known, onclick: () => this.actions.reuse(this.id) }, 'Use these settings')), hint);
  }

  /** @param {any} file @param {any} result */
  async facts(file, result) {
    const said = await credentials.read(file.blob);
    const source = credentials.sourceType(said);
    const parameters = said.parameters ?? withoutImages(this.asked?.body ?? {});
    const list = (/** @type {[string, any][]} */ rows) => el('dl', { className: 'facts' },
      ...rows.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, shown(value))]));
    const place = (/** @type {[string, number]} */ [step]) => (STEPS.includes(step) ? STEPS.indexOf(step) : STEPS.length);
    const taken = Object.entries(result.timings_ms ?? {}).sort((a, b) => place(a) - place(b));
    const timings = taken.map(([step, ms]) => `${step} ${ms} ms`).join(', ');
    const record = el('details', {}, el('summary', {}, 'The record of the job'), el('pre', { tabIndex: 0 }, '…'));
    record.addEventListener('toggle', async () => {
      const target = /** @type {HTMLElement} */ (record.querySelector('pre'));
      target.textContent = await json(`/jobs/${encodeURIComponent(this.id)}`).then((job) => JSON.stringify(job, null, 2), told);
    }, { once: true });
    const address = credentials.recordAddress(said);
    const link = /^https?:/.test(address) ? el('a', { href: address, rel: 'noreferrer' }, address) : address;
    return [
      el('details', { open: true }, el('summary', {}, 'Parameters'), list([...Object.entries(parameters).filter(([, value]) => isSaid(value)), ['time', timings]])),
      el('details', { open: true }, el('summary', {}, 'Credentials'), list([
        ['made by a model', source ? `yes, says its XMP: ${source}` : 'the file does not say so'],
        ['content credentials', said.signed ? 'signed (C2PA); atelier inspect FILE verifies by whom' : 'not signed'],
        ['record', link || 'not named in the file; below'],
        ['stored as', `s3://${file.bucket}/${file.key}`],
      ])),
      record,
    ];
  }

  release() {
    for (const address of this.addresses) URL.revokeObjectURL(address);
    this.addresses = [];
  }
}

/** Whether there is anything to show. @param {any} value */
function isSaid(value) { return value !== null && value !== '' && !(Array.isArray(value) && value.length === 0); }

/** @param {any} value */
function shown(value) {
  if (value instanceof Node) return value;
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** A data: address is an image, and no parameter to read. @param {any} body */
function withoutImages(body) {
  const short = (/** @type {any} */ value) => (typeof value === 'string' && value.startsWith('data:') ? 'an uploaded image' : value);
  return Object.fromEntries(Object.entries(body).map(([name, value]) => [name, Array.isArray(value) ? value.map(short) : short(value)]));
}
