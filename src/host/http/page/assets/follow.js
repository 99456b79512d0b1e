/** Follows a job to its end, however often the stream breaks: a host that restarts has it still. */

import { ApiError, events } from './api.js';
import { delay } from './dom.js';

const FIRST_PAUSE_MS = 300;
const MAX_PAUSE_MS = 5_000;

/** @param {string} state */
export function hasEnded(state) { return ['complete', 'failed', 'cancelled'].includes(state); }

/**
 * @param {string} id
 * @param {{event: (name: string, job: any) => void, lost: (error: any) => void}} told
 * @param {AbortSignal} signal
 * @throws {ApiError} when the host refuses: it knows no such job, or nobody may ask
 */
export async function follow(id, told, signal) {
  /** @type {string|null} */
  let last = null;
  let pause = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    try {
      for await (const event of events(id, last, signal)) {
        last = event.id ?? last;
        pause = FIRST_PAUSE_MS;
        told.event(event.name, event.job);
        if (hasEnded(event.job.state)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
      told.lost(error);
    }
    await delay(pause, signal);
    pause = Math.min(2 * pause, MAX_PAUSE_MS);
  }
}
