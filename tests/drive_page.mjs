// Opens the page in headless Chromium and does what each line of stdin says, as JSON; a line of
// JSON on stdout answers it. Arguments: folder of node_modules, address of the page, browser.

import { createRequire } from "node:module";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [modules, address, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
const profile = await mkdtemp(join(tmpdir(), "page-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
  ],
});
const page = await context.newPage();
const asked = [];
const errors = [];
page.on("request", (request) => asked.push(request.url()));
page.on("pageerror", (error) => errors.push(error.message));
await page.goto(address);

/** What the page says below a control, once it has an answer. */
async function said(place) {
  const output = page.locator(`output#${place}`);
  await page.waitForFunction(
    (id) => ["done", "failed"].includes(document.getElementById(id).className), place,
  );
  return { text: await output.textContent(), failed: (await output.getAttribute("class")) === "failed" };
}

const actions = {
  async open({ control, folder }) {
    await page.locator(`#${control}`).setInputFiles(folder);
    return said(`${control}-said`);
  },
  async ask({ fields }) {
    for (const [name, text] of Object.entries(fields)) {
      await page.locator(`textarea[name="${name}"]`).fill(text);
    }
    await page.locator("#ask button").click();
    return said("answer");
  },
  /** Run `body`, which sees `module` (an imported file) and `given`. */
  async module({ file, body, given }) {
    // As one text: the page itself may not make code of texts.
    return page.evaluate(`(async () => {
      const module = await import(new URL(${JSON.stringify(file)}, document.baseURI).href);
      const given = ${JSON.stringify(given ?? null)};
      ${body}
    })()`);
  },
  async seen() {
    return { asked, errors };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { action, ...given } = JSON.parse(line);
  let answer;
  try {
    answer = { value: await actions[action](given) };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context.close();
await rm(profile, { recursive: true, force: true });
