/** One input image or more of a kind: garments, the images of an edit. */

import { el } from './dom.js';
import { InputImage } from './input_image.js';

export class InputImages {
  /** @param {string} label @param {string} name the job's field @param {number} max */
  constructor(label, name, max) {
    Object.assign(this, { label, name, max });
    /** @type {InputImage[]} */
    this.list = [];
    this.add = el('button', { type: 'button', onclick: () => this.more(true) }, `Add another ${label.toLowerCase()}`);
    this.rows = el('div', { className: 'input-images' });
    this.element = el('div', {}, this.rows, this.add);
    this.more(false);
  }

  /** @param {boolean} focus on the new one */
  more(focus) {
    const number = this.list.length;
    const image = new InputImage(number ? `${this.label} ${number + 1}` : this.label, `${this.name}[${number}]`);
    this.list.push(image);
    this.rows.append(image.element);
    this.add.hidden = this.list.length >= this.max;
    if (focus) image.input.focus();
    return image;
  }

  /** @returns {string[]} those that are there, in their order */
  urls() { return this.list.flatMap((image) => image.url ?? []); }

  /** @param {string[]} urls of an earlier job */
  async restore(urls) {
    for (const [number, url] of urls.entries()) await (this.list[number] ?? this.more(false)).show(url);
  }
}
