/** A place for one input image: drop it there, choose a file, or paste. */

import { dataUrl, el, say } from './dom.js';

const ALLOWED = ['image/png', 'image/jpeg', 'image/webp'];

export class InputImage {
  /**
   * @param {string} label @param {string} name the job's field, by which the host's errors find it
   * @param {(image: HTMLImageElement|null) => void} [changed]
   */
  constructor(label, name, changed = () => {}) {
    /** @type {string|null} */
    this.url = null;
    this.label = label;
    this.changed = changed;
    this.input = el('input', { type: 'file', accept: ALLOWED.join(','), 'data-field': name, onchange: () => this.choose() });
    this.input.id = `input-${name.replace(/\W/g, '-')}`;
    this.preview = el('img', { alt: '', hidden: true });
    this.error = el('p', { className: 'error', role: 'alert', hidden: true });
    this.hint = el('span', { className: 'quiet' }, 'Drop an image here, or');
    this.remove = el('button', { type: 'button', hidden: true, onclick: () => this.clear() }, `Remove ${label.toLowerCase()}`);
    this.element = el('div', { className: 'input-image', role: 'group', 'aria-label': label },
      el('label', { htmlFor: this.input.id }, label), this.preview, this.hint, this.input, this.remove, this.error);
    for (const kind of ['dragover', 'dragleave', 'drop']) {
      this.element.addEventListener(kind, (event) => this.dragged(/** @type {DragEvent} */ (event)));
    }
    this.element.addEventListener('paste', (event) => this.take(/** @type {ClipboardEvent} */ (event).clipboardData?.files[0]));
  }

  dragged(/** @type {DragEvent} */ event) {
    event.preventDefault();
    this.element.classList.toggle('over', event.type === 'dragover');
    if (event.type === 'drop') this.take(event.dataTransfer?.files[0]);
  }

  choose() { this.take(this.input.files?.[0]); }

  /** @param {File|undefined} file */
  async take(file) {
    if (!file) return;
    if (!ALLOWED.includes(file.type)) return say(this.error, `must be a PNG, JPEG or WebP image, got ${file.type || file.name}`);
    await this.show(await dataUrl(file), file.name);
  }

  /** @param {string} url of `data:` @param {string} [name] */
  async show(url, name = 'the image of the earlier job') {
    this.preview.src = url;
    try {
      await this.preview.decode();
    } catch {
      this.clear();
      return say(this.error, `${name} cannot be shown: it is damaged, or no image`);
    }
    say(this.error);
    this.url = url;
    this.preview.alt = name;
    this.preview.hidden = false;
    this.remove.hidden = false;
    this.hint.textContent = `${name}, ${this.preview.naturalWidth} × ${this.preview.naturalHeight}`;
    this.changed(this.preview);
  }

  clear() {
    this.url = null;
    this.input.value = '';
    this.preview.removeAttribute('src');
    this.preview.hidden = true;
    this.remove.hidden = true;
    this.hint.textContent = 'Drop an image here, or';
    say(this.error);
    this.changed(null);
  }
}
