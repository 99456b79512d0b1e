/** Before and after, one over the other, with a slider between them. */

import { el } from './dom.js';

/** @param {string} before @param {string} after addresses @param {{width: number, height: number}} size of the result */
export function slider(before, after, { width, height }) {
  const range = el('input', { type: 'range', min: '0', max: '100', value: '50', 'aria-label': 'How much of the result is shown, in percent' });
  const upper = el('img', { src: after, alt: 'After', width, height, className: 'after' });
  const stack = el('div', { className: 'compare' }, el('img', { src: before, alt: 'Before', className: 'before' }), upper);
  const set = () => stack.style.setProperty('--split', `${100 - Number(range.value)}%`);
  range.addEventListener('input', set);
  set();
  return el('div', {}, stack, el('div', { className: 'tools' }, el('span', {}, 'Before'), range, el('span', {}, 'After')));
}
