/** The last jobs of the host, with their state. */

import { json, told } from './api.js';
import { byId, el, say } from './dom.js';
import { hasEnded } from './follow.js';

const SHOWN = 20;

export class Jobs {
  /** @param {{show: (id: string) => void, cancel: (id: string) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId('jobs');
    this.seen = '';
  }

  async refresh() {
    try {
      const { jobs } = await json('/jobs', { quiet: true });
      say(byId('jobs-error'));
      this.render(jobs.slice(0, SHOWN));
    } catch (error) {
      say(byId('jobs-error'), told(error));
    }
  }

  /** @param {any[]} jobs */
  render(jobs) {
    // Where nothing is new, nothing moves under a pointer or takes the focus away.
    const now = JSON.stringify(jobs);
    if (now === this.seen) return;
    this.seen = now;
    const focused = document.activeElement?.id;
    this.list.replaceChildren(...(jobs.length ? jobs.map((job) => this.row(job)) : [el('li', { className: 'quiet' }, 'None yet.')]));
    if (focused) document.getElementById(focused)?.focus();
  }

  /** @param {any} job */
  row(job) {
    const state = job.state === 'running' && job.step !== null ? `running, step ${job.step} of ${job.steps}` : job.state;
    const { show, cancel } = this.actions;
    const id = job.job_id;
    const name = (/** @type {string} */ what) => `${what}-${id}`;
    return el('li', {},
      el('button', { type: 'button', id: name('show'), className: 'link', onclick: () => show(id) }, id),
      el('span', { className: `badge ${job.state}` }, state),
      hasEnded(job.state) ? null
        : el('button', { type: 'button', id: name('cancel'), 'aria-label': `Cancel ${id}`, onclick: () => cancel(id) }, 'Cancel'),
      job.error ? el('small', { className: 'quiet' }, job.error.message ?? '') : null);
  }
}
