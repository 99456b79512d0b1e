// OpenAI's own Node client against a host: generates, edits, streams, is refused, is turned away and repeats.
// usage: node openai_images.mjs URL TOKEN IMAGE.png
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

// The package lies where tests/run has put it.
const require = createRequire(path.join(process.env.ATELIER_TEST_NODE, 'package.json'));
const { default: OpenAI, toFile } = await import(pathToFileURL(require.resolve('openai')).href.replace(/\.js$/, '.mjs'));

const [url, token, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: token });
const prompt = 'a red mug on the beach';
const isPng = (data) => Buffer.from(data, 'base64').subarray(1, 4).toString() === 'PNG';

const models = await client.models.list();
assert.deepEqual(models.data.map((model) => model.id), ['tiny-sd']);

const made = await client.images.generate({ prompt, n: 1, size: '64x64', quality: 'low' });
assert.ok(isPng(made.data[0].b64_json));

const edited = await client.images.edit({
  prompt,
  image: await toFile(fs.createReadStream(image), 'image.png', { type: 'image/png' }),
  quality: 'low',
});
assert.ok(isPng(edited.data[0].b64_json));

const kinds = [];
for await (const event of await client.images.generate({ prompt, stream: true, size: '64x64', quality: 'low' })) {
  kinds.push(event.type);
}
assert.deepEqual(kinds, ['image_generation.completed']);

// The first step of four is seen at once; how many more depends on how long they take.
const seen = [];
for await (const event of await client.images.generate({ prompt, stream: true, partial_images: 3, steps: 4 })) seen.push(event);
const completed = seen.pop();
assert.equal(completed.type, 'image_generation.completed');
assert.ok(seen.length >= 1 && seen.length <= 3, `${seen.length} partial images`);
for (const [index, event] of seen.entries()) {
  assert.deepEqual([event.type, event.partial_image_index, event.output_format], ['image_generation.partial_image', index, 'jpeg']);
  assert.equal(event.size, '16x16');
  const file = Buffer.from(event.b64_json, 'base64');
  assert.ok(file.subarray(0, 2).toString('hex') === 'ffd8' && file.includes('digitalsourcetype/trainedAlgorithmicMedia'));
}

await assert.rejects(client.images.generate({ prompt, size: 'large' }), (error) => error.status === 400 && error.param === 'size');

// The only handler is busy with the first: the second is turned away with 429, comes again by itself, and gets its image.
const both = await Promise.all(
  [1, 2].map(() => new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 8 }).images.generate({ prompt, quality: 'low' })),
);
assert.ok(both.every((answer) => isPng(answer.data[0].b64_json)));
console.log('all of it');
