/** Small helpers over the DOM. Text is only ever set as text: nothing here parses HTML. */

/** @param {string} id */
export const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * An element with properties, attributes (`aria-*`, `data-*`, `role`, `for`) and children.
 * @param {string} tag @param {Record<string, any>} [properties] @param {...(Node|string|null|undefined|false)} children
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes('-')) element[name] = value;
    else element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Shows a text in an element that is hidden while there is none. @param {HTMLElement} element @param {string} [text] */
export function say(element, text = '') {
  element.textContent = text;
  element.hidden = text === '';
}

let labels = 0;

/**
 * A labelled field.
 * @param {string} label @param {HTMLElement} control @param {string} [hint]
 */
export function field(label, control, hint) {
  control.id ||= `field-${(labels += 1)}`;
  const described = hint ? el('small', { id: `${control.id}-hint` }, hint) : null;
  if (described) control.setAttribute('aria-describedby', described.id);
  return el('div', { className: 'field' }, el('label', { htmlFor: control.id }, label), control, described);
}

/** @param {number} ms @param {AbortSignal} [signal] */
export function delay(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(undefined); }, { once: true });
  });
}

/** @param {Blob} blob @returns {Promise<string>} */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** @param {string} url of `data:` @returns {Blob} */
export function blobOf(url) {
  const [head, base64] = url.split(',', 2);
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(';')[0] });
}
