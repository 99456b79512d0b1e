/** What an image file says of itself: the mark that a model made it, content credentials (C2PA), how it was made. */

const text = new TextDecoder();
const latin1 = new TextDecoder('latin1');

/**
 * @typedef {{xmp: string, signed: boolean, parameters: any}} Said
 * @param {Blob} file @returns {Promise<Said>}
 */
export async function read(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const said = { xmp: '', signed: false, parameters: null };
  if (bytes[0] === 0x89) png(bytes, said);
  else if (bytes[0] === 0xff) jpeg(bytes, said);
  else if (latin1.decode(bytes.subarray(0, 4)) === 'RIFF') webp(bytes, said);
  return said;
}

/** The IPTC term for how much of it a model made. @param {Said} said @returns {string} */
export function sourceType({ xmp }) {
  return /DigitalSourceType>[^<]*\/(\w+)</.exec(xmp)?.[1] ?? '';
}

/** @param {Said} said @returns {string} the address of the job's record, where the file names it */
export function recordAddress({ xmp }) {
  const found = /<dc:relation>.*?<rdf:li>(.*?)<\/rdf:li>/s.exec(xmp)?.[1] ?? '';
  return found.replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');
}

/** Chunks of length, name, data and checksum, after a signature of 8 bytes. @param {Uint8Array} bytes @param {Said} said */
function png(bytes, said) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const name = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (name === 'caBX') said.signed = true;
    if (name === 'tEXt' || name === 'iTXt') chunk(data, name === 'iTXt', said);
    at += 12 + length;
  }
}

/** @param {Uint8Array} data @param {boolean} international @param {Said} said */
function chunk(data, international, said) {
  const end = data.indexOf(0);
  const keyword = latin1.decode(data.subarray(0, end));
  let content = latin1.decode(data.subarray(end + 1));
  if (international) {
    // Flag and method of compression, then language and translated keyword, each ending in a zero.
    const language = data.indexOf(0, end + 3);
    content = text.decode(data.subarray(data.indexOf(0, language + 1) + 1));
  }
  if (keyword === 'XML:com.adobe.xmp') said.xmp = content;
  if (keyword !== 'atelier') return;
  try {
    said.parameters = JSON.parse(content);
  } catch {
    // Another program's chunk of the same name.
  }
}

/** Segments of marker and length, up to the image's data. @param {Uint8Array} bytes @param {Said} said */
function jpeg(bytes, said) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    const length = view.getUint16(at + 2);
    const data = bytes.subarray(at + 4, at + 2 + length);
    if (bytes[at + 1] === 0xeb && latin1.decode(data.subarray(0, 64)).includes('jumb')) said.signed = true;
    const content = bytes[at + 1] === 0xe1 ? text.decode(data) : '';
    if (content.startsWith('http://ns.adobe.com/xap/1.0/\0')) said.xmp = content.slice(29);
    at += 2 + length;
  }
}

/** Chunks of name, length and data, padded to even lengths, after 12 bytes. @param {Uint8Array} bytes @param {Said} said */
function webp(bytes, said) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length;) {
    const name = latin1.decode(bytes.subarray(at, at + 4));
    const length = view.getUint32(at + 4, true);
    if (name === 'C2PA') said.signed = true;
    if (name === 'XMP ') said.xmp = text.decode(bytes.subarray(at + 8, at + 8 + length));
    at += 8 + length + (length % 2);
  }
}
