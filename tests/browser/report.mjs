// Looks at a report as its reader does, in headless Chromium: node report.mjs URL FOLDER, with node_modules beside this file
// or in NODE_MODULES. Screenshots go to FOLDER. Exits with 1 and says what is wrong at the first fault.

import { createRequire } from "node:module";
import { readFileSync, mkdirSync } from "node:fs";

const [, , url, folder] = process.argv;
const require = createRequire(process.env.NODE_MODULES ? `${process.env.NODE_MODULES}/x.js` : import.meta.url);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(folder, { recursive: true });

const check = (condition, text) => {
  if (!condition) throw new Error(text);
};
const equal = (found, wanted, text) => check(JSON.stringify(found) === JSON.stringify(wanted), `${text}: ${JSON.stringify(found)}, expected ${JSON.stringify(wanted)}`);
const sections = ["leaderboard", "differences", "curves", "strata", "agreement", "time", "gallery", "made"];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const faults = [];
const open = async (options) => {
  const page = await browser.newPage(options);
  page.on("console", (m) => ["error", "warning"].includes(m.type()) && !m.text().includes("willReadFrequently") && faults.push(`console ${m.type()}: ${m.text()}`));
  page.on("pageerror", (e) => faults.push(`error: ${e.message}`));
  page.on("request", (r) => {
    const own = r.url().startsWith("data:") || r.url().startsWith("blob:") || r.url().startsWith(new URL(url).origin === "null" ? "file:" : new URL(url).origin);
    if (!own) faults.push(`a request to ${r.url()}`);
  });
  const started = Date.now();
  await page.goto(url);
  await page.waitForSelector("html[data-ready]", { state: "attached" });
  page.opened = Date.now() - started;
  return page;
};
const through = async (page) => {
  for (const id of sections) {
    await page.evaluate((i) => document.getElementById(i).scrollIntoView(), id);
    await page.waitForTimeout(250);
  }
};

const tests = {
  async "opens, and the leaderboard is there"(page) {
    console.log(`  opened in ${page.opened} ms`);
    check((await page.locator("#board tbody tr").count()) > 3, "the leaderboard has no rows");
    equal(await page.locator("h1").count(), 1, "first headings");
    check((await page.locator("#board td.best").count()) > 0, "no best is marked");
    check((await page.locator("#board tr.control").count()) > 0, "no control is marked");
  },

  async "sorts by a column, and back"(page) {
    await page.selectOption("#board-family", "localisation");
    const column = async () => page.evaluate(() => {
      const th = document.querySelector('#board th[aria-sort]:not([aria-sort="none"])');
      const at = [...th.parentNode.children].indexOf(th);
      const values = [...document.querySelectorAll("#board tbody tr")].map((tr) => parseFloat(tr.children[at].textContent));
      return { sort: th.getAttribute("aria-sort"), values: values.filter((v) => !Number.isNaN(v)), all: values };
    });
    const header = page.locator("#board thead th button", { hasText: /^pixel AUPRC/ }).first();
    await header.click();
    let found = await column();
    equal(found.sort, "descending", "the first click");
    check(found.values.length > 2, "no values to sort");
    equal(found.values, [...found.values].sort((a, b) => b - a), "values from the best");
    check(found.all.slice(found.values.length).every((v) => Number.isNaN(v)), "what has no value is last");
    await page.keyboard.press("Enter");
    found = await column();
    equal(found.sort, "ascending", "the second, by the keyboard");
    equal(found.values, [...found.values].sort((a, b) => a - b), "values from the worst");
    check((await page.locator("#board-status").textContent()).includes("worst first"), "the order is not said");
    // Where less is better, the best comes first too, and values rise.
    await page.selectOption("#board-family", "every");
    await page.locator("#board thead th button", { hasText: /^(max-sensitivity|entropy)/ }).first().click();
    found = await column();
    equal(found.sort, "ascending", "less is better");
    equal(found.values, [...found.values].sort((a, b) => a - b), "values from the best, which are the least");
    await page.selectOption("#board-family", "overview");
    equal(await page.locator('#board th[aria-sort]:not([aria-sort="none"])').count() <= 1, true, "sorted columns");
  },

  async "filters by words and controls"(page) {
    const rows = () => page.locator("#board tbody tr").count();
    const all = await rows();
    await page.fill("#board-filter", "gradcam");
    const few = await rows();
    check(few > 0 && few < all, `${few} of ${all} rows`);
    for (const text of await page.locator("#board tbody th").allTextContents()) check(text.includes("gradcam"), text);
    await page.fill("#board-filter", "");
    await page.uncheck("#board-controls");
    equal(await page.locator("#board tr.control").count(), 0, "controls that are left");
    await page.check("#board-controls");
    equal(await rows(), all, "rows in the end");
  },

  async "explains every cell on hover, focus and for screen readers"(page) {
    await page.selectOption("#board-family", "overview");
    const tip = page.locator("#tip");
    const value = page.locator("#board td.best").first();
    await value.hover();
    check(await tip.isVisible(), "no tip on hover");
    check(/Mean .*is better/s.test(await tip.textContent()), await tip.textContent());
    await page.keyboard.press("Escape");
    check(!(await tip.isVisible()), "Escape leaves the tip");
    const none = page.locator("#board td.none").first();
    if (await none.count()) {
      await none.focus();
      check(await tip.isVisible(), "no tip on focus");
      equal(await none.getAttribute("aria-describedby"), "tip", "what describes the cell");
      check(/N\/A: \S/.test(await tip.textContent()), `a reason: ${await tip.textContent()}`);
    } else {
      check(process.env.WITHOUT_NA, "no N/A to explain");
    }
    check((await value.textContent()).includes("best"), "the best is said in words");
    // One stop of the keyboard, and arrows from there.
    equal(await page.locator("#board td[tabindex='0']").count(), 1, "cells that Tab stops at");
    await page.locator("#board td[tabindex='0']").focus();
    const from = await page.evaluate(() => document.activeElement.cellIndex);
    await page.keyboard.press("ArrowRight");
    check((await page.evaluate(() => document.activeElement.cellIndex)) > from, "the arrow goes nowhere");
  },

  async "draws every chart"(page) {
    await through(page);
    for (const id of ["cd-chart", "curve-chart", "size-chart", "agree-chart", "time-chart"]) {
      await page.evaluate((i) => document.getElementById(i).scrollIntoView(), id);
      await page.waitForSelector(`#${id} .main-svg`, { timeout: 5000 });
      const marks = await page.locator(`#${id} .trace, #${id} .hm, #${id} .heatmaplayer image, #${id} .points path`).count();
      check(marks > 0, `${id} is empty`);
    }
    check((await page.locator("#cd-table tbody tr").count()) > 1, "differences have no table");
    await page.selectOption("#agree-kind", "metrics");
    check((await page.locator("#agree-table tbody tr").count()) > 1, "metrics are not compared");
    const before = await page.locator("#cd-caption").textContent();
    await page.selectOption("#cd-metric", { index: 1 });
    await page.waitForTimeout(100);
    const after = await page.locator("#cd-caption").textContent();
    check(before.includes("mean rank over") && after.includes("mean rank over") && after !== before, `${before} | ${after}`);
    check((await page.locator("#curve-table tbody tr").count()) > 1, "curves have no table");
  },

  async "walks the gallery by keys and slider"(page) {
    await page.evaluate(() => document.getElementById("gallery").scrollIntoView());
    await page.waitForSelector("#g-strip button");
    const title = () => page.locator("#g-title").textContent();
    const painted = async (id) => {
      await page.waitForTimeout(150);
      return page.evaluate((i) => document.getElementById(i).toDataURL(), id);
    };
    await page.locator("#g-stage").focus();
    check((await title()).startsWith("1 of "), await title());
    const first = await painted("g-a");
    await page.keyboard.press("ArrowRight");
    check((await title()).startsWith("2 of "), await title());
    check((await painted("g-a")) !== first, "the next image looks the same");
    await page.keyboard.press("ArrowLeft");
    check((await painted("g-a")) === first, "the first image looks different now");
    await page.keyboard.press("End");
    const last = await title();
    await page.keyboard.press("ArrowRight");
    equal(await title(), last, "after the last");
    await page.keyboard.press("Home");
    const right = await page.inputValue("#g-right");
    await page.keyboard.press("ArrowDown");
    check((await page.inputValue("#g-right")) !== right, "the right explainer stays");
    await page.keyboard.press("ArrowUp");
    const opacity = Number(await page.inputValue("#g-opacity"));
    await page.keyboard.press("+");
    equal(Number(await page.inputValue("#g-opacity")), opacity + 10, "opacity by a key");
    const set = (v) => page.evaluate((value) => {
      const slider = document.getElementById("g-opacity");
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
    }, v);
    await set(0);
    const bare = await painted("g-a");
    await set(100);
    const full = await painted("g-a");
    check(bare !== full, "the slider changes nothing");
    // Without opacity and outline what is left is the image.
    await set(0);
    await page.uncheck("#g-outline");
    const without = await painted("g-a");
    equal(without === (await painted("g-image")), true, "nothing over the image");
    await page.check("#g-outline");
    check((await painted("g-a")) !== without, "the outline is not drawn");
    await set(60);
    // The best of the left explainer comes first, and the worst in the other order.
    const scores = async () => {
      const text = await page.locator("#g-a-text").textContent();
      return parseFloat(text.split(" ").pop());
    };
    await page.selectOption("#g-order", "best");
    const best = await scores();
    await page.selectOption("#g-order", "worst");
    const worst = await scores();
    check(best >= worst, `${best} before ${worst}`);
    await page.selectOption("#g-order", "disagree");
    const gap = async () => {
      const value = async (id) => parseFloat((await page.locator(id).textContent()).split(" ").pop());
      return Math.abs((await value("#g-a-text")) - (await value("#g-b-text")));
    };
    const most = await gap();
    await page.locator("#g-stage").focus();
    await page.keyboard.press("End");
    check(most >= (await gap()), "what differs most comes first");
    // Printing leaves the reader where they are.
    const here = await title();
    await page.evaluate(() => dispatchEvent(new Event("beforeprint")));
    await page.evaluate(() => dispatchEvent(new Event("afterprint")));
    equal(await title(), here, "after printing");
  },

  async "says how it was made"(page) {
    for (const id of ["made-spec", "made-environment", "made-bibtex"]) {
      check((await page.locator(`#${id}`).textContent()).length > 200, `${id} is empty`);
    }
    check((await page.locator("#made-bibtex").textContent()).includes("@misc{explainer-"), "no citation");
    check((await page.locator("#made-plugins tbody tr").count()) > 1, "no plugins");
  },

  async "is readable by a screen reader"(page) {
    await page.evaluate(axe);
    const found = await page.evaluate(async () => {
      const result = await window.axe.run({ exclude: [".js-plotly-plot"] }, { runOnly: ["wcag2a", "wcag2aa", "best-practice"] });
      return result.violations.map((v) => `${v.impact} ${v.id}: ${v.help} (${v.nodes.slice(0, 3).map((n) => n.target.join(" ")).join(", ")})`);
    });
    equal(found.filter((f) => !f.startsWith("minor")), [], "axe");
    const unnamed = await page.evaluate(() => [...document.querySelectorAll("select, input, canvas, .chart")].filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.closest("label"))).map((e) => e.id));
    equal(unnamed, [], "without a name");
  },
};

try {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  for (const [name, test] of Object.entries(tests)) {
    await test(page);
    console.log(`ok ${name}`);
  }
  for (const id of sections) {
    await page.evaluate((i) => document.getElementById(i).scrollIntoView(), id);
    await page.waitForTimeout(200);
    await page.screenshot({ path: `${folder}/${id}.png` });
  }
  await page.emulateMedia({ media: "print" });
  await page.screenshot({ path: `${folder}/print.png`, fullPage: true });
  await page.close();
  for (const [name, width, colorScheme] of [["phone", 390, "light"], ["phone-dark", 390, "dark"], ["dark", 1280, "dark"]]) {
    const other = await open({ viewport: { width, height: 844 }, colorScheme });
    await through(other);
    await other.evaluate(() => scrollTo(0, 0));
    await other.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
    const wide = await other.evaluate(() => document.documentElement.scrollWidth);
    check(wide <= width, `${name}: the page is ${wide} wide`);
    if (colorScheme === "dark") {
      await other.evaluate(axe);
      const contrast = await other.evaluate(async () => (await window.axe.run({ exclude: [".js-plotly-plot"] }, { runOnly: ["color-contrast"] })).violations.flatMap((v) => v.nodes.slice(0, 5).map((n) => n.target.join(" "))));
      equal(contrast, [], `${name}: contrast`);
    }
    await other.close();
    console.log(`ok ${name}`);
  }
  equal(faults, [], "console and network");
  console.log(`ok without a word on the console, nor a request elsewhere`);
} catch (error) {
  console.error(`FAILED ${error.message}`);
  if (faults.length) console.error(faults.join("\n"));
  process.exitCode = 1;
} finally {
  await browser.close();
}
