// What people do on the page of `atelier host`, in a real browser.
// usage: node page.mjs SCENARIO URL TOKEN [PROCESS ID OF THE HANDLER | DIRECTORY FOR SCREENSHOTS]
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';

import { Browser, accessible, fits, says, start } from './page/browser.mjs';

const [scenario, url, token, given] = process.argv.slice(2);
const PROMPT = 'a red mug on the beach';
const api = async (address, options = {}) => {
  const answer = await fetch(url + address, { ...options, headers: { authorization: `Bearer ${token}`, ...options.headers } });
  assert.ok(answer.ok, `${address}: ${answer.status}`);
  return answer;
};
/** Sample inputs, as the demo has them. */
const IMAGES = path.join(import.meta.dirname, '../../events/images');
/** Where an image of this kind is chosen. */
const file = (page, name) => page.getByRole('button', { name, exact: true });
const number = (page, name) => page.getByRole('spinbutton', { name, exact: true });
/** One that is long enough to be looked at while it runs. */
const long = async (page) => {
  await page.getByRole('radio', { name: 'Generate' }).check();
  await page.getByRole('textbox', { name: 'Prompt', exact: true }).fill(PROMPT);
  await number(page, 'Steps').fill('200');
  await number(page, 'Width (px)').fill('256');
  await number(page, 'Height (px)').fill('256');
};
const short = async (page) => {
  await page.getByRole('radio', { name: 'Generate' }).check();
  await page.getByRole('textbox', { name: 'Prompt', exact: true }).fill(PROMPT);
  await number(page, 'Steps').fill('3');
};

/** The list of the last jobs says this of one. */
const listed = (page, id, state) => page.locator('#jobs li').filter({ hasText: id }).getByText(state, { exact: true }).waitFor();

/** The host makes the mask of the try-on in the form; where its model cannot, nobody is offered one. */
const masked = async (browser, page) => {
  const garment = page.getByLabel('Mask the clothes for me');
  const limbs = page.getByLabel('Bare arms or legs there as well');
  assert.ok(await limbs.isHidden());
  await garment.selectOption('shoes');
  await page.getByRole('button', { name: 'Start' }).click();
  await page.locator('#form-error').filter({ hasText: 'auto_mask.garment' }).filter({ hasText: 'Upper-clothes' }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.dataset.field), 'auto_mask.garment');
  await garment.selectOption('upper clothes');
  await limbs.check();
  assert.ok(await page.locator('.mask canvas').isHidden(), 'one mask or the other');
  await accessible(page, 'a mask that is to be made');
  const sent = page.waitForRequest((request) => request.url().endsWith('/tryon'));
  const id = await start(page);
  const body = (await sent).postDataJSON();
  assert.deepEqual([body.auto_mask, body.mask], [{ garment: 'upper', limbs: true }, undefined]);
  await says(page, 'Complete.');
  await page.locator('#result').getByText('"garment":"upper"').first().waitFor();
  const { timings_ms: timings } = (await (await api(`/jobs/${id}`)).json()).result;
  assert.ok('mask' in timings, JSON.stringify(timings));
  await page.reload();
  await says(page, 'Complete.');
  await page.getByRole('button', { name: 'Use these settings' }).click();
  await limbs.and(page.locator(':checked')).waitFor();
  assert.equal(await garment.inputValue(), 'upper');
  await garment.selectOption('no');
  await page.locator('.mask canvas').waitFor();
  const without = await browser.page();
  await without.route('**/models', async (route) => {
    const response = await route.fetch();
    const { models } = await response.json();
    await route.fulfill({ response, json: { models: models.map((model) => ({ ...model, mask_classes: [] })) } });
  });
  await without.goto(`${url}/#token=${token}`);
  await without.getByRole('radio', { name: 'Try on' }).check();
  assert.ok(await without.getByLabel('Mask the clothes for me').isHidden());
};

const scenarios = {
  /** The token is asked for once, a wrong one is refused in the host's words, and it stays in the tab. */
  async token(browser) {
    const page = await browser.page();
    await page.goto(url);
    const dialog = page.getByRole('dialog');
    await dialog.getByLabel('Token').fill('wrong-wrong-wrong-wrong-wrong-wrong');
    await accessible(page, 'the question for the token');
    await dialog.getByRole('button', { name: 'Use it' }).click();
    await dialog.getByRole('alert').waitFor();
    const refusal = await (await fetch(`${url}/jobs`, { headers: { authorization: 'Bearer wrong' } })).json();
    assert.equal(await dialog.getByRole('alert').textContent(), refusal.error.message);
    await dialog.getByLabel('Token').fill(token);
    await dialog.getByLabel('Token').press('Enter');
    await dialog.waitFor({ state: 'hidden' });
    await page.getByText('None yet.').waitFor();
    await page.reload();
    await page.getByText('None yet.').waitFor();
    assert.equal(await page.getByRole('dialog').count(), 0, 'it is kept for the tab');
    assert.deepEqual(await page.evaluate(() => [Object.keys(sessionStorage), Object.keys(localStorage)]), [['atelier.token'], []]);
    // Who does not have it may still look, and is not asked again by what goes on by itself.
    const stranger = await browser.page();
    await stranger.goto(url);
    await stranger.getByRole('button', { name: 'Not now' }).click();
    await stranger.locator('#jobs-error').filter({ hasText: refusal.error.message }).waitFor();
    await stranger.getByRole('button', { name: 'System' }).click();
    await stranger.getByText('tiny-sd (hot)').waitFor();
    assert.equal(await stranger.getByRole('dialog').count(), 0);
    // One that came in the address leaves it.
    const linked = await browser.signedIn(token);
    await linked.getByText('None yet.').waitFor();
    assert.ok(!linked.url().includes('token'), linked.url());
  },

  /** Generate, download, repeat, look at it again, and what the host refuses. */
  async generate(browser) {
    const page = await browser.signedIn(token);
    await short(page);
    await number(page, 'Seed').fill('7');
    const id = await start(page);
    await says(page, 'Complete.');
    const image = page.getByRole('img', { name: `Generated by tiny-sd: ${PROMPT}` });
    await image.waitFor();
    assert.equal(await image.evaluate((shown) => shown.naturalWidth), 128);
    const stored = Buffer.from(await (await api(`/jobs/${id}/images/0`)).arrayBuffer());
    const download = page.waitForEvent('download');
    await page.getByRole('link', { name: 'Download' }).click();
    const saved = await download;
    assert.equal(saved.suggestedFilename(), `${id}-0.png`);
    assert.ok(fs.readFileSync(await saved.path()).equals(stored), 'the file as it is stored');
    const facts = page.locator('#result');
    for (const words of ['trainedAlgorithmicMedia', 'signed (C2PA)', 'dpmsolver++', `generations/${id}/`]) {
      await facts.getByText(words).first().waitFor();
    }
    await page.getByText('The record of the job').click();
    await facts.locator('pre').filter({ hasText: '"state": "complete"' }).waitFor();
    await listed(page, id, 'complete');

    await page.getByRole('button', { name: 'Repeat with another seed' }).click();
    await page.waitForFunction((old) => !location.hash.includes(old), id);
    await says(page, 'Complete.');
    const again = new URLSearchParams(new URL(page.url()).hash.slice(1)).get('job');
    const [{ seed }] = (await (await api(`/jobs/${again}`)).json()).result.images;
    assert.notEqual(seed, 7);
    await page.locator('#jobs').getByRole('button', { name: id, exact: true }).click();
    await facts.getByText('seed 7,').waitFor();

    // The host's own words, at the field.
    await number(page, 'Steps').fill('9000');
    await page.getByRole('button', { name: 'Start' }).click();
    const alert = page.locator('#form-error');
    await alert.filter({ hasText: 'steps' }).filter({ hasText: 'from 1 to 200' }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), 'number-steps');
    assert.equal(await number(page, 'Steps').getAttribute('aria-invalid'), 'true');
    await accessible(page, 'a refusal');
    await number(page, 'Steps').fill('3');
    await page.getByText('More settings').click();
    await page.getByRole('button', { name: 'Add a LoRA' }).click();
    await page.getByLabel('Address of LoRA 1').fill('ftp://nowhere/x.safetensors');
    await page.getByRole('button', { name: 'Start' }).click();
    await alert.filter({ hasText: 'lora[0].url' }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.dataset.field), 'lora[0].url');
  },

  /** A person and a garment, one chosen and one dropped; a mask is painted; what is outside of it stays. */
  async tryon(browser) {
    const page = await browser.signedIn(token);
    await page.getByRole('radio', { name: 'Try on' }).check();
    // Who starts at once is told what is missing, one after the other, and where.
    const lacks = async (name, id) => {
      await page.getByRole('button', { name: 'Start' }).click();
      await page.locator('#form-error').filter({ hasText: `${name}: choose an image` }).waitFor();
      assert.equal(await page.evaluate(() => document.activeElement.id), id);
    };
    await lacks('Person', 'input-person');
    await file(page, 'Person').setInputFiles(path.join(IMAGES, 'person.png'));
    await page.getByText('person.png, ').waitFor();
    await lacks('Garment', 'input-garments-0-');
    const garment = fs.readFileSync(path.join(IMAGES, 'garment.png')).toString('base64');
    await page.locator('.input-image', { has: file(page, 'Garment') }).evaluate((target, base64) => {
      const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], 'garment.png', { type: 'image/png' }));
      target.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }));
    }, garment);
    await page.getByText('garment.png, ').waitFor();
    const canvas = page.locator('.mask canvas');
    await canvas.scrollIntoViewIfNeeded();
    const box = await canvas.boundingBox();
    // A stroke over the upper half, and a dab by the keyboard.
    await page.mouse.move(box.x + box.width * 0.3, box.y + box.height * 0.3);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.7, box.y + box.height * 0.35, { steps: 5 });
    await page.mouse.up();
    await canvas.focus();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('Space');
    await page.getByRole('img', { name: 'with the mask that is painted' }).waitFor();
    await accessible(page, 'the form of a try-on');
    const sent = page.waitForRequest((request) => request.url().endsWith('/tryon'));
    const id = await start(page);
    const { mask } = (await sent).postDataJSON();
    await says(page, 'Complete.');
    await page.getByRole('button', { name: 'Before and after' }).click();
    const slider = page.getByRole('slider', { name: 'How much of the result' });
    await slider.press('Home');
    assert.equal(await page.locator('.compare').evaluate((stack) => stack.style.getPropertyValue('--split')), '100%');
    await accessible(page, 'before and after');
    const result = Buffer.from(await (await api(`/jobs/${id}/images/0`)).arrayBuffer()).toString('base64');
    const person = fs.readFileSync(path.join(IMAGES, 'person.png')).toString('base64');
    const outside = await page.evaluate(async (images) => {
      const [made, before, mask] = await Promise.all(images.map(async (source) => {
        const image = new Image();
        image.src = source;
        await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        canvas.getContext('2d').drawImage(image, 0, 0);
        return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      }));
      const found = { kept: 0, changed: 0, white: 0, sizes: [made.width, before.width, mask.width] };
      for (let at = 0; at < mask.data.length; at += 4) {
        const same = [0, 1, 2].every((channel) => made.data[at + channel] === before.data[at + channel]);
        if (mask.data[at] > 250) found.white += 1;
        if (mask.data[at] === 0 && same) found.kept += 1;
        if (mask.data[at] === 0 && !same) found.changed += 1;
      }
      return found;
    }, [`data:image/png;base64,${result}`, `data:image/png;base64,${person}`, mask]);
    assert.equal(new Set(outside.sizes).size, 1, 'person, mask and result are of one size');
    assert.ok(outside.white > 100 && outside.kept > 1000, JSON.stringify(outside));
    assert.ok(outside.changed <= outside.kept / 50, `outside of the mask: ${JSON.stringify(outside)}`);
    // What was asked for comes back into the form, mask included.
    await page.reload();
    await says(page, 'Complete.');
    await page.getByRole('button', { name: 'Use these settings' }).click();
    await page.getByRole('img', { name: 'with the mask that is painted' }).waitFor();
    await masked(browser, page);
    // An edit of the same image.
    await page.getByRole('radio', { name: 'Edit' }).check();
    await file(page, 'Image').setInputFiles(path.join(IMAGES, 'person.png'));
    await page.getByRole('textbox', { name: 'Prompt', exact: true }).fill('a blue shirt');
    await number(page, 'Steps').fill('1');
    await start(page);
    await says(page, 'Complete.');
    await page.getByRole('img', { name: 'Generated by tiny-edit: a blue shirt' }).waitFor();
  },

  async cancel(browser) {
    const page = await browser.signedIn(token);
    await long(page);
    // It must not be done before a browser on a busy machine has seen a preview and found the button.
    await number(page, 'Images').fill('4');
    const id = await start(page);
    await says(page, /Step \d+ of 200\./);
    const preview = page.getByRole('img', { name: /^Preview after step \d+ of 200$/ });
    await preview.waitFor();
    // The next one may come while this one is decoded.
    await page.waitForFunction((image) => image.complete && image.naturalWidth === 32, await preview.elementHandle());
    await page.locator('#result').getByRole('button', { name: 'Cancel' }).click();
    await says(page, 'Cancelled.');
    assert.ok(await preview.isHidden());
    assert.equal((await (await api(`/jobs/${id}`)).json()).state, 'cancelled');
    await listed(page, id, 'cancelled');
    await page.getByRole('button', { name: 'Repeat with another seed' }).waitFor();
  },

  /** A reload while a job runs: the page goes on with it. */
  async reload(browser) {
    const page = await browser.signedIn(token);
    await long(page);
    const id = await start(page);
    await says(page, /Step \d+ of 200\./);
    await page.reload();
    await says(page, /Step \d+ of 200\./);
    assert.ok(page.url().endsWith(`#job=${id}`));
    await says(page, 'Complete.');
    await page.getByRole('img', { name: `Generated by tiny-sd: ${PROMPT}` }).waitFor();
    assert.equal(await page.getByRole('img', { name: /^Preview/ }).count(), 0);
  },

  /** The handler dies while the job runs: the page says so, and has the image in the end. */
  async crash(browser) {
    const page = await browser.signedIn(token);
    await long(page);
    await start(page);
    await says(page, /Step \d+ of 200\./);
    process.kill(Number(given), 'SIGKILL');
    await page.getByText('Attempt 1: the process that generated it died (it was ended by signal 9)').waitFor();
    await says(page, /Step \d+ of 200\./);
    await says(page, 'Complete.');
    await page.getByRole('img', { name: `Generated by tiny-sd: ${PROMPT}` }).waitFor();
    assert.ok(await page.locator('#result > [role=alert]').isHidden());
    await page.getByRole('button', { name: 'System' }).click();
    await page.locator('dt:has-text("Handlers that ended") + dd').filter({ hasText: /^1$/ }).waitFor();
  },

  /** Every view, light and dark, on a desktop and on a phone; screenshots of them where a directory is given. */
  async views(browser) {
    for (const colorScheme of ['light', 'dark']) {
      for (const [device, viewport] of [['desktop', { width: 1100, height: 860 }], ['phone', { width: 320, height: 700 }]]) {
        const what = `${device}, ${colorScheme}`;
        const page = await browser.signedIn(token, { colorScheme, viewport });
        await page.getByRole('radio', { name: 'Try on' }).check();
        await file(page, 'Person').setInputFiles(path.join(IMAGES, 'person.png'));
        await file(page, 'Garment').setInputFiles(path.join(IMAGES, 'garment.png'));
        await page.getByText('garment.png, ').waitFor();
        await page.getByLabel('Mask the clothes for me').selectOption('upper');
        await start(page);
        await says(page, 'Complete.');
        await page.getByText('signed (C2PA)').waitFor();
        await page.getByRole('button', { name: 'Before and after' }).click();
        await accessible(page, `a result: ${what}`);
        await fits(page, `a result: ${what}`);
        await page.evaluate((phone) => (phone ? document.getElementById('now').scrollIntoView() : scrollTo(0, 0)), device === 'phone');
        if (given) await page.screenshot({ path: path.join(given, `page-${device}-${colorScheme}.png`) });
        for (const task of ['Edit', 'Generate']) {
          await page.getByRole('radio', { name: task }).check();
          await accessible(page, `${task}: ${what}`);
          await fits(page, `${task}: ${what}`);
        }
        await page.getByRole('button', { name: 'System' }).click();
        await page.getByRole('img', { name: /Waiting jobs: / }).waitFor();
        await accessible(page, `the system: ${what}`);
        await fits(page, `the system: ${what}`);
        if (given) await page.screenshot({ path: path.join(given, `page-system-${device}-${colorScheme}.png`) });
      }
    }
  },
};

const browser = await Browser.open(url);
try {
  await scenarios[scenario](browser);
} catch (error) {
  for (const page of browser.pages) console.log(await page.locator('body').innerText().catch(() => ''));
  console.log(browser.wrong);
  throw error;
}
await browser.close();
console.log('all of it');
// Whatever is still open must not keep this process.
process.exit(0);
