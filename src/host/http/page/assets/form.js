/** The form of a new job: shows what the host's models can do, makes the job's body, shows what is wrong with it. */

import { byId, el, field, say } from './dom.js';
import { ApiError, told } from './api.js';
import { AutoMask } from './auto_mask.js';
import { Mask } from './mask.js';
import { InputImage } from './input_image.js';
import { InputImages } from './input_images.js';

const TASKS = {
  tryon: { label: 'Try on', schema: 'TryOn', path: '/tryon' },
  generate: { label: 'Generate', schema: 'Generate', path: '/generate' },
  edit: { label: 'Edit', schema: 'Edit', path: '/edit' },
};
/** Field, label, and what its number is; the document of the API says what is allowed. */
const NUMBERS = [
  ['steps', 'Steps'], ['guidance_scale', 'Guidance'], ['width', 'Width (px)'], ['height', 'Height (px)'],
  ['num_images', 'Images'], ['seed', 'Seed'],
];
const RESOLUTIONS = ['480p', '720p', '1080p'];
const MAX_LORAS = 8;

export function randomSeed() { return crypto.getRandomValues(new Uint32Array(1))[0]; }

/** Also where the page is not in a secure context, which `crypto.randomUUID` asks for. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

export class Form {
  /** @param {(path: string, body: any) => Promise<void>} submit */
  constructor(submit) {
    this.submit = submit;
    this.form = /** @type {HTMLFormElement} */ (byId('job-form'));
    this.error = byId('form-error');
    this.model = /** @type {HTMLSelectElement} */ (byId('model'));
    this.prompt = /** @type {HTMLTextAreaElement} */ (byId('prompt'));
    this.negative = /** @type {HTMLTextAreaElement} */ (byId('negative'));
    /** @type {any[]} */
    this.models = [];
    this.task = '';
    /** A prompt for the images of one task is none for those of another. @type {Record<string, string>} */
    this.prompts = {};
    this.mask = new Mask();
    this.autoMask = new AutoMask((wanted) => this.mask.offer(!wanted));
    this.person = new InputImage('Person', 'person', (person) => this.mask.load(person));
    this.garments = new InputImages('Garment', 'garments', 4);
    this.images = new InputImages('Image', 'images', 3);
    this.basis = /** @type {HTMLSelectElement} */ (byId('consent-basis'));
    this.reference = /** @type {HTMLInputElement} */ (byId('consent-reference'));
    this.form.addEventListener('submit', (event) => { event.preventDefault(); this.send(); });
    this.model.addEventListener('change', () => this.modelChanged());
    byId('add-lora').addEventListener('click', () => this.addLora(true));
  }

  /** @param {any[]} models of `GET /models` @param {any} document of `GET /openapi.json` */
  setUp(models, document) {
    this.schemas = document.components.schemas;
    const before = JSON.stringify(this.models.map((model) => ({ ...model, status: '', model_loaded: '' })));
    const now = JSON.stringify(models.map((model) => ({ ...model, status: '', model_loaded: '' })));
    this.models = models;
    // What somebody has typed stays, unless the models themselves are others.
    if (before === now) return;
    const tasks = Object.keys(TASKS).filter((task) => models.some((model) => model.tasks.includes(task)));
    const choices = byId('tasks');
    choices.replaceChildren(choices.firstElementChild ?? '', ...tasks.map((task) => {
      const radio = el('input', { type: 'radio', name: 'task', value: task, onchange: () => this.taskChanged(task) });
      return el('label', {}, radio, ` ${TASKS[task].label}`);
    }));
    this.choose(tasks.includes(this.task) ? this.task : tasks[0]);
  }

  /** @param {string} task */
  choose(task) {
    if (!task) return;
    const radio = /** @type {HTMLInputElement} */ (this.form.querySelector(`input[name=task][value=${task}]`));
    radio.checked = true;
    this.taskChanged(task);
  }

  /** @param {string} task */
  taskChanged(task) {
    if (this.task) this.prompts[this.task] = this.prompt.value;
    this.prompt.value = this.prompts[task] ?? '';
    this.task = task;
    const doing = this.models.filter((model) => model.tasks.includes(task));
    // A try-on names no model: the first that does try-ons gets it.
    const offered = task === 'tryon' ? doing.slice(0, 1) : doing;
    this.model.replaceChildren(...offered.map((model) => el('option', { value: model.name }, model.name)));
    const inputs = {
      generate: [],
      edit: [this.images.element],
      tryon: [el('div', { className: 'input-images' }, this.person.element, this.garments.element),
        this.autoMask.element, this.mask.element],
    };
    byId('inputs').replaceChildren(...inputs[task]);
    const label = /** @type {HTMLElement} */ (this.form.querySelector('label[for=prompt]'));
    label.textContent = task === 'tryon' ? 'Prompt (optional)' : 'Prompt';
    this.modelChanged();
  }

  served() { return this.models.find((model) => model.name === this.model.value); }

  modelChanged() {
    const served = this.served();
    const properties = this.schemas[TASKS[this.task].schema].properties;
    const fields = NUMBERS.filter(([name]) => properties[name] && (served?.guidance || name !== 'guidance_scale'));
    const numbers = fields.map(([name, label]) => this.number(name, label, properties[name], served));
    if (this.task === 'tryon') numbers.push(this.options('resolution', 'Resolution', RESOLUTIONS));
    if ((served?.modes ?? []).length > 1) numbers.push(this.options('mode', 'Mode', served.modes));
    byId('numbers').replaceChildren(...numbers);
    this.autoMask.offer(served?.mask_classes ?? []);
    byId('negative-field').hidden = !served?.guidance;
    byId('loras').hidden = this.task === 'tryon' || !served?.loras;
    byId('consent').hidden = this.task === 'generate';
    byId('more').hidden = byId('negative-field').hidden && byId('loras').hidden && byId('consent').hidden;
  }

  /** @param {string} name @param {string} label @param {any} property @param {any} served */
  number(name, label, property, served) {
    const own = this.task === 'generate' ? served?.defaults?.[name] : undefined;
    const isSide = name === 'width' || name === 'height';
    const step = isSide ? served?.side_multiple_px : name === 'guidance_scale' ? 'any' : 1;
    const input = el('input', {
      type: 'number', inputMode: 'decimal', min: property.minimum, max: property.maximum, step, 'data-field': name,
      placeholder: own ?? 'default',
    });
    input.id = `number-${name}`;
    const row = field(label, input);
    if (name === 'seed') {
      row.append(el('button', { type: 'button', onclick: () => { input.value = String(randomSeed()); } }, 'Random seed'));
    }
    return row;
  }

  /** @param {string} name @param {string} label @param {string[]} values */
  options(name, label, values) {
    const chosen = el('select', { 'data-field': name }, el('option', { value: '' }, 'default'),
      ...values.map((value) => el('option', { value }, value)));
    chosen.id = `option-${name}`;
    return field(label, chosen);
  }

  /** @param {boolean} focus @param {{url?: string, scale?: number}} [lora] */
  addLora(focus, lora = {}) {
    const rows = byId('lora-rows');
    const number = rows.childElementCount;
    if (number >= MAX_LORAS) return;
    const url = el('input', { type: 'text', value: lora.url ?? '', placeholder: 's3:// or https://', 'data-field': `lora[${number}].url` });
    const scale = el('input', { type: 'number', min: -4, max: 4, step: 'any', value: String(lora.scale ?? 1), 'data-field': `lora[${number}].scale` });
    const row = el('div', { className: 'lora' }, field(`Address of LoRA ${number + 1}`, url), field(`Scale of LoRA ${number + 1}`, scale),
      el('button', { type: 'button', onclick: () => row.remove() }, `Remove LoRA ${number + 1}`));
    rows.append(row);
    if (focus) url.focus();
  }

  /** The job's body without its id. @returns {any} */
  body() {
    const body = {};
    if (this.task !== 'tryon' && this.model.value) body.model = this.model.value;
    if (this.prompt.value.trim() || this.task !== 'tryon') body.prompt = this.prompt.value;
    if (this.negative.value.trim() && !byId('negative-field').hidden) body.negative_prompt = this.negative.value;
    for (const input of byId('numbers').querySelectorAll('[data-field]')) {
      const { value, type } = /** @type {HTMLInputElement} */ (input);
      // What is no number is the host's to refuse, by its name.
      if (value.trim()) body[input.getAttribute('data-field')] = type === 'number' ? Number(value) : value;
    }
    if (!byId('loras').hidden) {
      const lora = Array.from(byId('lora-rows').children, (row) => {
        const [url, scale] = row.querySelectorAll('input');
        return { url: url.value.trim(), scale: Number(scale.value || 1) };
      });
      if (lora.length) body.lora = lora;
    }
    if (this.task !== 'generate' && this.basis.value) {
      body.consent = { basis: this.basis.value, reference: this.reference.value };
    }
    if (this.task === 'edit') body.images = this.images.urls();
    if (this.task === 'tryon') {
      if (this.person.url) body.person = this.person.url;
      body.garments = this.garments.urls();
      const autoMask = this.autoMask.value();
      const mask = autoMask ? null : this.mask.url();
      if (autoMask) body.auto_mask = autoMask;
      if (mask) body.mask = mask;
    }
    return body;
  }

  async send() {
    this.clearErrors();
    if (!this.task) return say(this.error, 'No model is served that the page knows a form for.');
    const empty = this.empty();
    if (empty) {
      say(this.error, `${empty.label}: choose an image, or drop one there`);
      return this.mark(empty.input);
    }
    const start = /** @type {HTMLButtonElement} */ (byId('start'));
    start.disabled = true;
    try {
      await this.submit(TASKS[this.task].path, this.body());
    } catch (error) {
      this.refused(error);
    } finally {
      start.disabled = false;
    }
  }

  /** The first place that needs an image and has none: the host would speak of addresses. @returns {InputImage|undefined} */
  empty() {
    if (this.task === 'tryon' && !this.person.url) return this.person;
    const several = { tryon: this.garments, edit: this.images }[this.task];
    return several && !several.urls().length ? several.list[0] : undefined;
  }

  clearErrors() {
    say(this.error);
    for (const input of this.form.querySelectorAll('[aria-invalid]')) {
      input.removeAttribute('aria-invalid');
      input.removeAttribute('aria-errormessage');
    }
  }

  /** Says what the host said, and marks the field that it named. @param {any} error */
  refused(error) {
    const wait = error instanceof ApiError && error.body?.retry_after ? ` (again in ${error.body.retry_after} s)` : '';
    say(this.error, told(error) + wait);
    const name = error instanceof ApiError ? error.field : undefined;
    if (!name) return;
    const inputs = Array.from(this.form.querySelectorAll('[data-field]'), (input) => /** @type {HTMLElement} */ (input));
    const named = (/** @type {HTMLElement} */ input) => input.dataset.field ?? '';
    const input = inputs.find((each) => named(each) === name) ?? inputs.find((each) => named(each).startsWith(`${name}[`));
    if (input) this.mark(input);
  }

  /** @param {HTMLElement} input that the error is about */
  mark(input) {
    input.setAttribute('aria-invalid', 'true');
    input.setAttribute('aria-errormessage', this.error.id);
    input.closest('details')?.setAttribute('open', '');
    input.focus();
  }

  /** Fills in what an earlier job asked for. @param {string} path @param {any} body */
  async restore(path, body) {
    const task = Object.keys(TASKS).find((name) => TASKS[name].path === path);
    if (!task || !this.models.some((model) => model.tasks.includes(task))) return;
    this.choose(task);
    if (body.model) this.model.value = body.model;
    this.modelChanged();
    this.prompt.value = body.prompt ?? '';
    this.negative.value = body.negative_prompt ?? '';
    for (const input of byId('numbers').querySelectorAll('[data-field]')) {
      /** @type {HTMLInputElement} */ (input).value = String(body[input.getAttribute('data-field')] ?? '');
    }
    this.basis.value = body.consent?.basis ?? '';
    this.reference.value = body.consent?.reference ?? '';
    byId('lora-rows').replaceChildren();
    for (const lora of body.lora ?? []) this.addLora(false, lora);
    if (task === 'edit') await this.images.restore(body.images);
    if (task !== 'tryon') return;
    await this.person.show(body.person);
    await this.garments.restore(body.garments);
    this.autoMask.restore(body.auto_mask);
    if (body.mask) await this.mask.restore(body.mask);
  }
}
