// Records what the plain-browser platform answers with, from real calls and a real run:
//
//   cargo build --release -p nibble-cli && node browser/record.js ../../target/release/nibble
//
// Paths are rewritten to `/home/you`, so that the files are the same on every machine.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../../..");
const nibble = resolve(process.argv[2] ?? join(root, "target/release/nibble"));
const place = mkdtempSync(join(tmpdir(), "nibble-record-"));
const call = (...words) =>
  execFileSync(nibble, [...words, "--json"], { encoding: "utf8", maxBuffer: 2 ** 28 });
const home = (text) =>
  text.replaceAll(root, "/home/you/nibble").replaceAll(place, "/home/you/runs");
const write = (name, value) =>
  writeFileSync(join(here, "../src/platform/recorded", name), home(JSON.stringify(value)) + "\n");

const starter = join(root, "assets/starter");
const data = (name) => join(root, "assets/datasets", `${name}.jsonl`);
const MIB_FREE = 21 * 1024;

// Regions are many and nothing draws them one by one.
const plan = (model, budgetMib, ...sizes) => {
  const report = JSON.parse(
    call("plan", "--model", model, "--budget", `${budgetMib}MiB`, ...sizes),
  );
  for (const method of report.methods) method.regions = [];
  return report;
};
const plans = {};
for (const seq of [64, 128, 256, 512]) {
  for (const batch of [1, 2, 4, 8, 16, 32]) {
    for (const rank of [4, 8, 16, 32, 64]) {
      const sizes = ["--seq", seq, "--batch", batch, "--rank", rank].map(String);
      try {
        plans[`starter ${seq} ${batch} ${rank}`] = plan(starter, MIB_FREE, ...sizes);
      } catch {
        // Longer than the model reads.
      }
    }
  }
}
const entries = JSON.parse(readFileSync(join(root, "assets/catalog.json"), "utf8"));
const usual = ["--seq", "256", "--batch", "4", "--rank", "16"];
const catalog = entries.map(({ id, name, repository }) => {
  plans[`${id} 256 4 16`] = plan(id, MIB_FREE, ...usual);
  return { id, name, path: null, repository, summary: plans[`${id} 256 4 16`].model };
});
write("plans.json", plans);

// The same two models within less memory, which pages: what is asked for first is the most.
const paged = {};
for (const [model, name, budgets] of [
  [
    starter,
    "starter",
    [256, 224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 36, 34, 32, 30, 28, 26, 24, 20],
  ],
  ["llama-2-13b", "llama-2-13b", [16, 14, 12, 10, 8, 6, 5, 4, 3, 2, 1].map((gib) => gib * 1024)],
]) {
  paged[name] = budgets.map((mib) => plan(model, mib, ...usual));
}
write("paged-plans.json", paged);

const inspections = {};
for (const name of ["pirate", "json-answers", "polite-robot"]) {
  const words = ["inspect", "--model", starter, "--data", data(name), "--seq", "256"];
  inspections[data(name)] = JSON.parse(call(...words, "--limit", "5"));
}
write("inspections.json", inspections);

const prompt = "What do cats eat?";
const record = (name, folder, ...words) => {
  const path = join(place, folder);
  const events = call(
    ...["train", "--model", starter, "--data", data("pirate"), "--out", path],
    ...["--seq", "256", "--batch", "4", "--warmup", "5", "--eval-split", "0.1", ...words],
    ...["--sample", prompt, "--sample-every", "20"],
  )
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const settings = toml(readFileSync(join(path, "run.toml"), "utf8"));
  const plan = JSON.parse(readFileSync(join(path, "plan.json"), "utf8"));
  for (const method of plan.methods) method.regions = [];
  write(name, { path, events, settings, plan });
  return settings;
};
const every = ["--eval-every", "20", "--save-every", "20"];
const settings = record(
  ...["run.json", "2026-11-23 qlora starter", "--method", "qlora"],
  ...["--steps", "80", "--lr", "2e-3", ...every],
);
record(
  ...["paged-run.json", "2026-11-21 full starter", "--method", "full", "--budget", "48MiB"],
  ...["--steps", "40", "--lr", "5e-4", ...every],
);
const devices = JSON.parse(call("devices"));
write("startup.json", {
  version: "0.1.0",
  devices: devices.devices,
  cuda: devices.cuda,
  starter: {
    id: starter,
    name: "Nibble starter",
    path: starter,
    repository: null,
    summary: plans["starter 256 4 16"].model,
  },
  catalog,
  datasets: [
    { name: "Pirate", description: "Answers like a pirate", path: data("pirate"), prompt },
    {
      name: "JSON answers",
      description: "Answers in a strict format",
      path: data("json-answers"),
      prompt: "What color is the sky?",
    },
    {
      name: "Polite robot",
      description: "Answers like a robot",
      path: data("polite-robot"),
      prompt: "Who are you?",
    },
  ],
  preferences: {
    theme: "system",
    runs_folder: place,
    models_folder: join(root, "models"),
    device: "cpu",
  },
  defaults: settings,
  cards: [8, 10, 11, 12, 16, 20, 24, 32, 48, 80].map((gib) => ({
    name: `${gib} GB`,
    bytes: gib * 2 ** 30,
  })),
});
rmSync(place, { recursive: true });

/** As much TOML as `run.toml` has: tables, numbers, strings, booleans and lists of strings. */
function toml(text) {
  const document = {};
  let table = document;
  for (const line of text
    .replaceAll(/\[\s*\n([^\]]*)\]/g, (_, items) => `[${items.trim()}]`)
    .split("\n")) {
    const head = /^\[([\w]+)\]$/.exec(line);
    if (head) table = document[head[1]] = {};
    const pair = /^(\w+) = (.*)$/.exec(line);
    if (pair) table[pair[1]] = JSON.parse(pair[2].replace(/,\s*\]$/, "]").replaceAll("\n", ""));
  }
  return document;
}
