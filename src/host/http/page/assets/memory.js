/** What this browser remembers of the jobs that it asked for: their requests with the images in them, in IndexedDB. */

const KEPT = 30;
const STORE = 'requests';
/** Where the browser keeps nothing (a private window), the tab does. @type {Map<string, any>} */
const fallback = new Map();

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open('atelier-page', 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: 'id' });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

/** @template T @param {IDBRequest<T>} asked @returns {Promise<T>} */
function answer(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/** @param {string} id @param {string} path the endpoint @param {any} body as it was sent */
export async function remember(id, path, body) {
  const kept = { id, path, body, at: Date.now() };
  fallback.set(id, kept);
  try {
    const database = await open();
    const store = database.transaction(STORE, 'readwrite').objectStore(STORE);
    await answer(store.put(kept));
    const all = await answer(store.getAll());
    const old = all.sort((one, other) => other.at - one.at).slice(KEPT);
    await Promise.all(old.map((entry) => answer(store.delete(entry.id))));
    database.close();
  } catch {
    // Nothing is lost but the memory over a reload.
  }
}

/** @param {string} id @returns {Promise<{id: string, path: string, body: any}|undefined>} */
export async function recall(id) {
  if (fallback.has(id)) return fallback.get(id);
  try {
    const database = await open();
    const found = await answer(database.transaction(STORE).objectStore(STORE).get(id));
    database.close();
    return found;
  } catch {
    return undefined;
  }
}
