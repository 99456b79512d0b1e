/** Has the mask of a try-on made by the host, which finds the clothes in the person's image. */

import { el, field } from './dom.js';

/** As the field `garment` has them. */
const GARMENTS = [['upper', 'upper clothes'], ['lower', 'lower clothes'], ['full', 'all clothes'], ['shoes', 'shoes']];

export class AutoMask {
  /** @param {(wanted: boolean) => void} changed whether a mask is to be made, in place of one by hand */
  constructor(changed) {
    this.changed = changed;
    this.garment = el('select', { 'data-field': 'auto_mask.garment', onchange: () => this.show() },
      el('option', { value: '' }, 'no'), ...GARMENTS.map(([value, label]) => el('option', { value }, label)));
    this.limbs = el('input', { type: 'checkbox', 'data-field': 'auto_mask.limbs' });
    this.more = el('label', { hidden: true }, this.limbs, ' Bare arms or legs there as well');
    this.element = el('div', { hidden: true }, field('Mask the clothes for me', this.garment,
      'What the person wears there may change, and everything else stays.'), this.more);
  }

  /** @param {string[]} classes that the model finds; none: it cannot make a mask */
  offer(classes) {
    this.element.hidden = classes.length === 0;
    if (this.element.hidden) this.garment.value = '';
    this.show();
  }

  show() {
    const wanted = this.garment.value !== '';
    this.more.hidden = !wanted || this.garment.value === 'shoes';
    this.changed(wanted);
  }

  /** The field `auto_mask`; undefined: none is wanted. @returns {any} */
  value() {
    if (!this.garment.value) return undefined;
    return { garment: this.garment.value, ...(this.limbs.checked && !this.more.hidden ? { limbs: true } : {}) };
  }

  /** @param {any} asked what an earlier job had there */
  restore(asked) {
    this.garment.value = this.element.hidden ? '' : asked?.garment ?? '';
    this.limbs.checked = asked?.limbs ?? false;
    this.show();
  }
}
