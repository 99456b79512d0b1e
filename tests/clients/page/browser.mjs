// A real browser on the page of a host, and what must hold whatever is done there: no request leaves the host, no policy is violated.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

// The packages lie where tests/run has put them.
const require = createRequire(path.join(process.env.ATELIER_TEST_NODE, 'package.json'));
const { chromium } = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

/** Longer than anything on a loaded machine. */
export const LIMIT = 120_000;

export class Browser {
  /** @param {string} url of the host */
  static async open(url) {
    const browser = await chromium.launch({ executablePath: process.env.ATELIER_TEST_CHROMIUM, args: ['--no-sandbox'] });
    return new Browser(browser, url);
  }

  constructor(browser, url) {
    this.browser = browser;
    this.url = url;
    this.origin = new URL(url).origin;
    this.wrong = [];
    this.pages = [];
  }

  /** A page of its own, with nothing stored. */
  async page(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(LIMIT);
    page.on('request', (request) => {
      const address = request.url();
      if (!address.startsWith(`${this.origin}/`) && !/^(data|blob):/.test(address)) this.wrong.push(`asked ${address}`);
    });
    page.on('pageerror', (error) => this.wrong.push(`threw ${error.stack}`));
    page.on('console', (message) => {
      const text = message.text();
      // A refusal of the API is logged by the browser itself.
      if (message.type() === 'error' && !text.startsWith('Failed to load resource')) this.wrong.push(`logged ${text}`);
    });
    await page.addInitScript(() => {
      window.violations = [];
      addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
    });
    this.pages.push(page);
    return page;
  }

  /** A page with the token, ready for a job. */
  async signedIn(token, options) {
    const page = await this.page(options);
    await page.goto(`${this.url}/#token=${token}`);
    await page.getByRole('radio', { name: 'Generate' }).waitFor();
    return page;
  }

  async close() {
    for (const page of this.pages) this.wrong.push(...(await page.evaluate(() => window.violations)));
    await this.browser.close();
    assert.deepEqual(this.wrong, []);
  }
}

/** axe-core's word on what is shown now. The page's policy lets no script in, so it comes in as the inspector's own. */
export async function accessible(page, what) {
  const session = await page.context().newCDPSession(page);
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await session.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    assert.equal(exceptionDetails, undefined, what);
    return result.value;
  };
  await evaluate(`${axe}; 0`);
  const found = await evaluate(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => id + ': ' + nodes.map(({ html }) => html).join(' ').slice(0, 400)))`);
  await session.detach();
  assert.deepEqual(found, [], what);
}

/** Nothing is wider than the screen. */
export async function fits(page, what) {
  const { wide, screen } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth, screen: innerWidth }));
  assert.ok(wide <= screen, `${what}: ${wide} of ${screen} pixels`);
}

/** Sends the form and waits until its job is followed; returns the job's id. */
export async function start(page) {
  const before = page.url();
  await page.getByRole('button', { name: 'Start' }).click();
  await page.waitForFunction((old) => location.href !== old && location.hash.startsWith('#job='), before);
  return new URLSearchParams(new URL(page.url()).hash.slice(1)).get('job');
}

/** Waits until the shown job says this of itself. */
export async function says(page, words) {
  await page.locator('#result .words').filter({ hasText: words }).waitFor();
}
