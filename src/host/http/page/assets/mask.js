/** Paints the mask of a try-on over the person: what is painted may change, everything else stays. */

import { el } from './dom.js';

/** Of the canvas's longer side; the mask itself is as large as the person. */
const MAX_SIDE_PX = 1024;
const PAINT = 'rgb(226 74 120)';

export class Mask {
  constructor() {
    this.canvas = el('canvas', { tabIndex: 0, role: 'img', 'aria-describedby': 'mask-help' });
    this.context = this.canvas.getContext('2d');
    this.size = el('input', { type: 'range', min: '2', max: '40', value: '14', id: 'brush' });
    this.erase = el('input', { type: 'checkbox', id: 'erase' });
    this.cursor = { x: 0, y: 0 };
    /** @type {HTMLImageElement|null} */
    this.person = null;
    this.offered = true;
    this.canvas.addEventListener('pointerdown', (event) => this.begin(event));
    this.canvas.addEventListener('pointermove', (event) => this.move(event));
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('blur', () => this.draw());
    const button = (/** @type {string} */ name, /** @type {() => void} */ act) =>
      el('button', { type: 'button', onclick: act }, name);
    this.element = el('fieldset', { className: 'mask', hidden: true },
      el('legend', {}, 'Mask (optional)'),
      el('p', { id: 'mask-help', className: 'quiet' },
        'Paint where the person may change; nothing painted: everywhere. With the keyboard: arrow keys move the brush, space paints.'),
      this.canvas,
      el('div', { className: 'tools' },
        el('label', { htmlFor: 'brush' }, 'Brush'), this.size,
        el('label', {}, this.erase, ' Erase'),
        button('Paint all', () => this.fill()), button('Clear the mask', () => this.clear())));
    /** What was painted, opaque where it was. */
    this.layer = document.createElement('canvas');
    this.painted = false;
    this.clear();
  }

  /** @param {HTMLImageElement|null} person */
  load(person) {
    this.person = person;
    this.show();
    if (!person) return this.clear();
    const scale = Math.min(1, MAX_SIDE_PX / Math.max(person.naturalWidth, person.naturalHeight));
    for (const canvas of [this.canvas, this.layer]) {
      canvas.width = Math.max(1, Math.round(person.naturalWidth * scale));
      canvas.height = Math.max(1, Math.round(person.naturalHeight * scale));
    }
    this.cursor = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.clear();
  }

  /** @param {boolean} offered whether one may be painted */
  offer(offered) {
    this.offered = offered;
    this.show();
  }

  show() { this.element.hidden = this.person === null || !this.offered; }

  /** A mask of an earlier job. @param {string} url of `data:` */
  async restore(url) {
    const image = el('img', { src: url, alt: '' });
    await image.decode();
    const context = this.layer.getContext('2d');
    context.drawImage(image, 0, 0, this.layer.width, this.layer.height);
    const pixels = context.getImageData(0, 0, this.layer.width, this.layer.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at] > 127 ? 255 : 0;
    context.putImageData(pixels, 0, 0);
    context.globalCompositeOperation = 'source-in';
    context.fillStyle = PAINT;
    context.fillRect(0, 0, this.layer.width, this.layer.height);
    context.globalCompositeOperation = 'source-over';
    this.painted = true;
    this.draw();
  }

  clear() {
    this.layer.getContext('2d').clearRect(0, 0, this.layer.width, this.layer.height);
    this.painted = false;
    this.draw();
  }

  fill() {
    const context = this.layer.getContext('2d');
    context.fillStyle = PAINT;
    context.fillRect(0, 0, this.layer.width, this.layer.height);
    this.painted = true;
    this.draw();
  }

  /** A PNG, white where the person may change; null: nothing is painted. @returns {string|null} */
  url() {
    if (!this.person || !this.isPainted()) return null;
    const mask = document.createElement('canvas');
    mask.width = this.person.naturalWidth;
    mask.height = this.person.naturalHeight;
    const context = mask.getContext('2d');
    context.drawImage(this.layer, 0, 0, mask.width, mask.height);
    context.globalCompositeOperation = 'source-in';
    context.fillStyle = '#fff';
    context.fillRect(0, 0, mask.width, mask.height);
    context.globalCompositeOperation = 'destination-over';
    context.fillStyle = '#000';
    context.fillRect(0, 0, mask.width, mask.height);
    return mask.toDataURL('image/png');
  }

  /** What was painted may have been erased again. */
  isPainted() {
    if (!this.painted) return false;
    const { data } = this.layer.getContext('2d').getImageData(0, 0, this.layer.width, this.layer.height);
    return data.some((value, at) => at % 4 === 3 && value > 0);
  }

  radius() { return (Number(this.size.value) / 100) * Math.max(this.canvas.width, this.canvas.height) / 2; }

  place(/** @type {PointerEvent} */ event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) * this.canvas.width / box.width,
      y: (event.clientY - box.top) * this.canvas.height / box.height,
    };
  }

  begin(/** @type {PointerEvent} */ event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = this.place(event);
    this.stroke(this.cursor, this.cursor);
  }

  move(/** @type {PointerEvent} */ event) {
    const to = this.place(event);
    if (event.buttons & 1) this.stroke(this.cursor, to);
    this.cursor = to;
  }

  key(/** @type {KeyboardEvent} */ event) {
    const step = Math.max(this.canvas.width, this.canvas.height) / 40;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], ' ': [0, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const limit = (/** @type {number} */ value, /** @type {number} */ end) => Math.min(Math.max(value, 0), end);
    const to = {
      x: limit(this.cursor.x + move[0] * step, this.canvas.width),
      y: limit(this.cursor.y + move[1] * step, this.canvas.height),
    };
    if (event.key === ' ') this.stroke(to, to);
    this.cursor = to;
    this.draw(true);
  }

  stroke(/** @type {{x: number, y: number}} */ from, /** @type {{x: number, y: number}} */ to) {
    const context = this.layer.getContext('2d');
    context.globalCompositeOperation = this.erase.checked ? 'destination-out' : 'source-over';
    context.strokeStyle = PAINT;
    context.lineWidth = 2 * this.radius();
    context.lineCap = 'round';
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    context.globalCompositeOperation = 'source-over';
    this.painted ||= !this.erase.checked;
    this.draw();
  }

  /** @param {boolean} [showBrush] where the keyboard would paint */
  draw(showBrush = false) {
    const { context, canvas } = this;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.person) context.drawImage(this.person, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.6;
    context.drawImage(this.layer, 0, 0);
    context.globalAlpha = 1;
    if (showBrush) {
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.radius(), 0, 2 * Math.PI);
      context.lineWidth = Math.max(1, canvas.width / 200);
      context.strokeStyle = '#fff';
      context.stroke();
    }
    canvas.setAttribute('aria-label', this.painted ? 'The person, with the mask that is painted' : 'The person, without a mask');
  }
}
