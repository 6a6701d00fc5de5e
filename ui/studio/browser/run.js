// Walks the page in Chromium on recorded data: every page, in both themes, with its accessibility
// checked and a picture taken.
//
//   npm run browser [-- FOLDER_FOR_PICTURES]
//   npm run measure
//
// NIBBLE_CHROMIUM names the browser; else `chromium` is taken from the PATH.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { delimiter, join, resolve } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const pictures = resolve(
  process.argv.slice(2).find((word) => !word.startsWith("--")) ?? "screenshots-out",
);
mkdirSync(pictures, { recursive: true });
const executablePath =
  process.env["NIBBLE_CHROMIUM"] ??
  (process.env["PATH"] ?? "")
    .split(delimiter)
    .map((folder) => join(folder, "chromium"))
    .find(existsSync);
if (!executablePath) {
  console.error("error: no chromium found; install it, or name it in NIBBLE_CHROMIUM");
  process.exit(1);
}

// One that nobody uses, so that two checkouts can be tested at once.
const port = await new Promise((found) => {
  const probe = createServer().listen(0, () => {
    const { port } = probe.address();
    probe.close(() => found(port));
  });
});
const server = spawn(
  process.execPath,
  ["node_modules/vite/bin/vite.js", "preview", "--port", String(port), "--strictPort"],
  { stdio: ["ignore", "pipe", "inherit"] },
);
await new Promise((ready) => server.stdout.once("data", ready));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

/** The page at 1280 × 800, as the app's window opens. */
async function open(theme, query = "", viewport = { width: 1280, height: 800 }) {
  const context = await browser.newContext({
    viewport,
    colorScheme: theme,
    reducedMotion: "reduce",
  });
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") faults.push(message.text());
  });
  await page.goto(`http://localhost:${port}/${query}`);
  await page.locator("main").waitFor();
  return { page, faults, close: () => context.close() };
}

/** Nothing that keeps a person out, whatever they see or use. */
async function accessible(page, name) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = serious.map(
    ({ id, nodes }) => `${id}: ${nodes[0].html}\n${nodes[0].failureSummary}`,
  );
  assert.deepEqual(told, [], name);
}

async function walk(theme) {
  const { page, faults, close } = await open(theme);
  const at = (id) => page.getByTestId(id);
  const look = async (name) => {
    await accessible(page, `${name}, ${theme}`);
    await page.screenshot({ path: join(pictures, `${name}-${theme}.png`) });
  };

  await at("sample-text").waitFor();
  await look("new-run");
  const total = () => at("memory-qlora").getAttribute("data-bytes").then(Number);
  const before = await total();
  await at("rank-thumb").focus();
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction(
    (before) =>
      Number(document.querySelector("[data-testid=memory-qlora]").dataset["bytes"]) > before,
    before,
  );
  await at("more").click();
  await page.getByText("Rank-stabilised scale").scrollIntoViewIfNeeded();
  await look("new-run-more");

  // A model that does not fit offers what would.
  await at("model").click();
  await at("model-llama-2-13b").click();
  await at("method-full").click();
  await at("suggestions").waitFor();
  await page.evaluate(() => document.querySelector("main").scrollTo(0, 0));
  await look("new-run-too-large");
  await at("suggestion").first().click();
  await at("suggestions").waitFor({ state: "detached" });
  await at("model-folder").fill("/nowhere");
  await page.keyboard.press("Tab");
  await at("error").first().waitFor();
  await look("new-run-error");
  await at("model").click();
  await page.locator('[data-testid$="starter"]').last().click();

  await at("train").click();
  await at("page-run").waitFor();
  await page.waitForFunction(() => {
    const step = document.querySelector("[data-testid=step]");
    return step && Number(step.textContent) >= 40;
  });
  await at("pause").click();
  await page.getByTestId("unpause").waitFor();
  await look("run");
  // Loaded again, it shows the same run, with all of its past.
  const step = Number(await at("step").textContent());
  assert.ok(step >= 40);
  await at("unpause").click();
  await at("to-export").waitFor({ timeout: 20_000 });
  await look("run-finished");
  await at("nav-runs").click();
  await page.getByRole("checkbox").first().check();
  await page.getByRole("checkbox").last().check();
  await at("overlay").waitFor();
  await page.waitForTimeout(200);
  await look("runs");
  await at("nav-playground").click();
  await at("ask").click();
  await page.waitForFunction(
    () => document.querySelector("[data-testid=ask]") && /matey/.test(document.body.innerText),
  );
  await look("playground");
  await at("nav-export").click();
  await at("export").click();
  await at("exported").waitFor();
  await look("export");
  await at("nav-settings").click();
  await look("settings");
  await at(theme === "dark" ? "theme-light" : "theme-dark").click();
  const scheme = await page.evaluate(() => document.documentElement.dataset["scheme"]);
  assert.notEqual(scheme, theme);
  assert.deepEqual(faults, []);
  await close();
}

async function emptyPages() {
  const { page, faults, close } = await open("light", "?empty");
  for (const name of ["runs", "playground", "export"]) {
    await page.getByTestId(`nav-${name}`).click();
    await accessible(page, `${name}, empty`);
    await page.screenshot({ path: join(pictures, `${name}-empty.png`) });
  }
  assert.deepEqual(faults, []);
  await close();
}

/** Nothing is cut off or hidden beside something else, however large the window is. */
async function sizes() {
  for (const [width, height] of [
    [960, 640],
    [1280, 800],
    [1920, 1080],
  ]) {
    const { page, faults, close } = await open("light", "", { width, height });
    const at = (id) => page.getByTestId(id);
    const fits = async (name) => {
      const wide = await page.evaluate(() => {
        const main = document.querySelector("main");
        const right = main.getBoundingClientRect().left + main.clientWidth;
        const told = (element) =>
          `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 30)}`;
        const cards = [...main.querySelectorAll(".card")];
        return [
          ...[...main.querySelectorAll("*")].filter(
            (element) => element.getBoundingClientRect().right > right + 1,
          ),
          ...cards.filter((card) => card.scrollWidth > card.clientWidth + 1),
        ].map(told);
      });
      await page.screenshot({ path: join(pictures, `${name}-${width}.png`) });
      assert.deepEqual(wide, [], `${name} at ${width}`);
    };
    const inView = async (id) => {
      const box = await at(id).boundingBox();
      assert.ok(box && box.y >= 0 && box.y + box.height <= height, `${id} at ${width}`);
    };
    await at("sample-text").waitFor();
    await fits("new");
    // What a run would cost, and its start, are in view from the first moment, paged or not.
    for (const id of ["memory-full", "memory-lora", "memory-qlora", "train"]) await inView(id);
    await at("method-full").click();
    await at("budget-thumb").focus();
    for (let i = 0; i < 80 && !(await at("paging-words").isVisible()); i++) {
      await page.keyboard.press("ArrowLeft");
    }
    await at("paged-full-optimizer").waitFor();
    await fits("new-paged");
    for (const id of ["memory-full", "memory-lora", "memory-qlora", "train"]) await inView(id);
    // So is the start beside all the changes that would make a plan fit.
    await page.keyboard.press("Home");
    await at("suggestions").waitFor();
    await fits("new-too-small");
    for (const id of ["memory-full", "memory-lora", "memory-qlora", "train"]) await inView(id);
    await page.keyboard.press("End");
    await at("suggestions").waitFor({ state: "detached" });
    await at("method-qlora").click();
    await at("more").click();
    await page.evaluate(() => document.querySelector("main").scrollTo(0, 1e6));
    await page.waitForTimeout(200);
    await fits("new-scrolled");
    // What a run would cost, and its start, are always in view.
    for (const id of ["memory-full", "memory-lora", "memory-qlora", "train"]) await inView(id);
    await at("train").click();
    await page.waitForFunction(
      () => Number(document.querySelector("[data-testid=step]")?.textContent) >= 30,
    );
    // Another page begins at its top.
    await inView("run-state");
    await fits("run");
    for (const name of ["runs", "playground", "export", "settings"]) {
      await at(`nav-${name}`).click();
      await at(`page-${name}`).waitFor();
      await fits(name);
    }
    assert.deepEqual(faults, []);
    await close();
  }
}

/** What is dropped goes where it belongs, and what is wrong with it is said there. */
async function drops() {
  const { page, close } = await open("dark");
  const at = (id) => page.getByTestId(id);
  const send = (name, detail) =>
    page.evaluate(
      ([name, detail]) => dispatchEvent(new CustomEvent(name, { detail })),
      [name, detail],
    );
  await at("sample-text").waitFor();
  await at("nav-settings").click();
  await send("files-held", true);
  await at("drop").waitFor();
  await accessible(page, "something held over the window");
  await page.screenshot({ path: join(pictures, "drop-dark.png") });
  await send("files-held", false);
  await at("drop").waitFor({ state: "detached" });

  const said = (title, code) =>
    page.locator(`section:has(#${title}) [data-testid=error][data-code=${code}]`).waitFor();
  await send("files-dropped", [{ kind: "data", path: "/home/you/strange.bin" }]);
  await at("page-new").waitFor();
  await said("data-title", "unknown_format");
  assert.ok(await at("train").isDisabled());
  await send("files-dropped", [{ kind: "model", path: "/home/you/holidays" }]);
  await said("model-title", "no_model");
  await send("files-dropped", [{ kind: "run", path: "/home/you/holidays" }]);
  await at("page-runs").waitFor();
  await page.locator("[data-testid=error][data-code=no_run]").waitFor();
  await close();
}

/** Closing asks, and every answer is within reach of the keyboard. */
async function closing() {
  const { page, close } = await open("light");
  await page.getByTestId("sample-text").waitFor();
  await page.evaluate(() => dispatchEvent(new CustomEvent("close-requested", { detail: true })));
  const question = page.getByRole("dialog");
  await question.waitFor();
  await accessible(page, "the question at closing");
  await page.screenshot({ path: join(pictures, "closing-light.png") });
  const reached = new Set();
  for (let i = 0; i < 6; i++) {
    reached.add(await page.evaluate(() => document.activeElement.textContent.trim()));
    await page.keyboard.press("Tab");
  }
  for (const answer of ["Cancel", "Stop and save", "Keep training"]) {
    assert.ok(reached.has(answer), answer);
  }
  await page.keyboard.press("Escape");
  await question.waitFor({ state: "detached" });
  await close();
}

/** Everything that a mouse can do on a new run, the keyboard can. */
async function keyboard() {
  const { page, close } = await open("light");
  await page.getByTestId("sample-text").waitFor();
  const reached = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    const id = await page.evaluate(
      () => document.activeElement.dataset["testid"] ?? document.activeElement.getAttribute("role"),
    );
    reached.add(id);
  }
  for (const id of [
    ...["nav-runs", "nav-settings", "model", "model-folder", "method-qlora", "sequence-thumb"],
    ...["batch-thumb", "rank-thumb", "steps", "prompt", "more", "card", "memory-full", "train"],
  ]) {
    assert.ok(reached.has(id), `${id} is not reached: ${[...reached].join(", ")}`);
  }
  await page.getByTestId("train").focus();
  await page.keyboard.press("Enter");
  await page.getByTestId("page-run").waitFor();
  await close();
}

/** What is typed survives a reload. */
async function reload() {
  const { page, close } = await open("light");
  await page.getByTestId("method-lora").click();
  await page.getByTestId("batch-thumb").focus();
  await page.keyboard.press("ArrowRight");
  const batch = await page.getByTestId("batch-value").textContent();
  await page.waitForTimeout(100);
  await page.reload();
  await page.getByTestId("page-new").waitFor();
  assert.equal(await page.getByTestId("batch-value").textContent(), batch);
  assert.equal(await page.getByTestId("method-lora").getAttribute("data-state"), "checked");
  await close();
}

/** A theme is seen before it is kept, and taken back where it cannot be. */
async function fullDisk() {
  const { page, close } = await open("light", "?full");
  const at = (id) => page.getByTestId(id);
  const scheme = () => page.evaluate(() => document.documentElement.dataset["scheme"]);
  const isChosen = async (theme) =>
    (await at(`theme-${theme}`).getAttribute("data-state")) === "checked";
  const save = () => page.evaluate(() => void dispatchEvent(new Event("save")));
  await at("nav-settings").click();
  // The first is kept; what was chosen meanwhile is not.
  await at("theme-dark").click();
  await at("theme-light").click();
  await save();
  assert.equal(await scheme(), "light");
  assert.equal(await at("error").count(), 0);
  await page.waitForTimeout(50);
  assert.ok(await isChosen("light"));
  await save();
  await at("error").waitFor();
  assert.equal(await at("error").getAttribute("data-code"), "preferences_unwritable");
  assert.equal(await scheme(), "dark");
  assert.ok(await isChosen("dark"));
  await close();
}

/** How long a frame of a live run of 100,000 steps takes, and the panel after a key. */
async function measure() {
  const { page, close } = await open("light", "?endless");
  await page.getByTestId("nav-new").click();
  await page.getByTestId("memory-qlora").waitFor();
  await page.evaluate(() => {
    window.changes = [];
    const row = () => document.querySelector("[data-testid=memory-qlora]").dataset["bytes"];
    let [asked, before] = [0, row()];
    addEventListener("keydown", () => ([asked, before] = [performance.now(), row()]), true);
    new MutationObserver(() => {
      if (asked && row() !== before) {
        window.changes.push(performance.now() - asked);
        asked = 0;
      }
    }).observe(document.body, { subtree: true, attributes: true });
  });
  await page.getByTestId("rank-thumb").focus();
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press(i % 2 ? "ArrowLeft" : "ArrowRight");
    await page.waitForTimeout(50);
  }
  const changes = (await page.evaluate(() => window.changes)).sort((a, b) => a - b);
  const middle = changes[Math.floor(changes.length / 2)];
  console.log(`a key to the memory panel: ${middle.toFixed(1)} ms (median of ${changes.length})`);

  await page.getByTestId("nav-run").click();
  await page.getByTestId("chart-loss").locator("canvas").waitFor();
  await page.waitForTimeout(1500);
  const devtools = await page.context().newCDPSession(page);
  // Of the page's own thread, so that what else the machine does takes no part.
  await devtools.send("Performance.enable", { timeDomain: "threadTicks" });
  const reading = async () => {
    const { metrics } = await devtools.send("Performance.getMetrics");
    const of = (name) => metrics.find((metric) => metric.name === name).value;
    return {
      script: of("ScriptDuration"),
      busy: of("TaskDuration"),
      step: await page.getByTestId("step").textContent(),
    };
  };
  const [from, start] = [await reading(), Date.now()];
  await page.waitForTimeout(5000);
  const [to, end] = [await reading(), Date.now()];
  const steps = Number(to.step.replaceAll(",", "")) - Number(from.step.replaceAll(",", ""));
  const busy = (to.busy - from.busy) * 1000;
  const script = (to.script - from.script) * 1000;
  console.log(
    `five charts of 100,000 live points: ${(busy / steps).toFixed(1)} ms a frame with new points, ` +
      `${(script / steps).toFixed(1)} of them script; ${(busy / (end - start)).toFixed(2)} of a core at ${((steps / (end - start)) * 1000).toFixed(0)} a second`,
  );
  await close();
}

const TESTS = process.argv.includes("--measure")
  ? { measured: measure }
  : {
      "every page in light": () => walk("light"),
      "every page in dark": () => walk("dark"),
      "empty pages": emptyPages,
      "every page at every size": sizes,
      "what is dropped": drops,
      "the question at closing": closing,
      "the keyboard": keyboard,
      "a reload keeps the draft": reload,
      "a theme that cannot be kept": fullDisk,
    };
let failed = false;
for (const [name, test] of Object.entries(TESTS)) {
  try {
    await test();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed = true;
    console.log(`FAILED  ${name}\n${error.stack ?? error}`);
  }
}
await browser.close();
server.kill();
console.log(`pictures: ${pictures}`);
process.exit(failed ? 1 : 0);
