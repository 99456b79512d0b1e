/** The system view: handlers, queue, speed and GPU memory, out of `GET /metrics`. */

import { status, text, told } from './api.js';
import { byId, el, say } from './dom.js';
import { parse } from './metrics.js';

const SAMPLES = 180;
const SVG = 'http://www.w3.org/2000/svg';
const WIDTH = 300;
const HEIGHT = 80;
const GIB = 2 ** 30;

/** Name, unit, and how it is taken out of the metrics; none: the host does not know it. */
const CHARTS = [
  ['Waiting jobs', '', (/** @type {Sample} */ sample) => sample.sum('atelier_queue_depth')],
  ['Handlers at work', '', (sample) => sample.sum('atelier_handlers', { state: 'busy' })],
  ['Steps a second', '', (sample) => sample.sum('atelier_denoising_steps_per_second')],
  ['GPU memory', ' GiB', (sample) => (sample.has('gpu_memory_used_bytes', { gpu: 'none' }) ? null : sample.sum('gpu_memory_used_bytes') / GIB)],
];

class Sample {
  /** @param {string} metrics */
  constructor(metrics) { this.all = parse(metrics); }

  /** @param {string} name @param {Record<string, string>} [labels] */
  find(name, labels = {}) {
    return this.all.filter((each) => each.name === name && Object.entries(labels).every(([key, value]) => each.labels[key] === value));
  }

  has(name, labels) { return this.find(name, labels).length > 0; }

  sum(name, labels) { return this.find(name, labels).reduce((sum, each) => sum + each.value, 0); }
}

export class System {
  constructor() {
    /** @type {(number|null)[][]} */
    this.history = CHARTS.map(() => []);
  }

  async refresh() {
    try {
      const [metrics, test, version] = await Promise.all([text('/metrics'), status('/test'), status('/version')]);
      const sample = new Sample(metrics);
      CHARTS.forEach(([, , take], place) => {
        this.history[place].push(take(sample));
        this.history[place].splice(0, this.history[place].length - SAMPLES);
      });
      say(byId('system-error'));
      if (!byId('system').hidden) this.render(sample, test, version);
    } catch (error) {
      say(byId('system-error'), told(error));
    }
  }

  /** @param {Sample} sample @param {any} test @param {any} version */
  render(sample, test, version) {
    const handlers = sample.find('atelier_handlers').map(({ labels, value }) => `${value} ${labels.state}`).join(', ');
    const restarts = sample.sum('atelier_handler_restarts_total');
    const models = version.models.map((model, place) => `${model.name} (${test.models[place]?.status ?? '?'})`).join(', ');
    const gpus = sample.find('gpu_utilization_percent').filter(({ labels }) => labels.gpu !== 'none');
    const facts = [
      ['Host', `${version.node_id}, ${version.git_commit.slice(0, 12)}`],
      ['Ready', test.reason ? `${test.status}: ${test.reason}` : test.status],
      ['Models', models],
      ['Handlers', handlers || 'none'],
      ['Handlers that ended', String(restarts)],
      ['Jobs taken from queues', String(sample.sum('atelier_jobs_in_flight'))],
      ['Store', sample.sum('atelier_store_available') ? 'available' : 'away'],
      ['GPU', gpus.length ? gpus.map(({ labels, value }) => `${labels.gpu}: ${value} %`).join(', ') : 'none: jobs run on the CPU'],
    ];
    byId('facts').replaceChildren(...facts.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
    byId('charts').replaceChildren(...CHARTS.map(([name, unit], place) => chart(name, unit, this.history[place])));
  }
}

/** @param {string} name @param {string} unit @param {(number|null)[]} values oldest first */
function chart(name, unit, values) {
  const known = values.filter((value) => value !== null);
  const last = values.at(-1);
  if (last === null || last === undefined) return el('figure', {}, el('figcaption', {}, `${name}: not known here`));
  const most = Math.max(...known, 1e-9);
  const round = (/** @type {number} */ value) => String(Math.round(value * 10) / 10);
  const words = `${name}: ${round(last)}${unit} now, ${round(most)}${unit} highest`;
  const svg = document.createElementNS(SVG, 'svg');
  const attributes = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': words, preserveAspectRatio: 'none' };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  const line = document.createElementNS(SVG, 'polyline');
  const x = (/** @type {number} */ place) => WIDTH - (values.length - 1 - place) * (WIDTH / (SAMPLES - 1));
  const y = (/** @type {number} */ value) => HEIGHT - 2 - (value / most) * (HEIGHT - 6);
  line.setAttribute('points', values.map((value, place) => `${x(place).toFixed(1)},${y(value ?? 0).toFixed(1)}`).join(' '));
  svg.append(line);
  return el('figure', {}, el('figcaption', {}, words), svg);
}
