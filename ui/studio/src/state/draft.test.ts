import { beforeEach, expect, test } from "vitest";
import recorded from "../platform/recorded/startup.json";
import type { Startup } from "../platform/types";
import { Draft } from "./draft.svelte";

const begin = recorded as unknown as Startup;
beforeEach(() => localStorage.clear());

test("the starter's learning rate is not another model's", () => {
  const rate = 2e-3;
  const draft = new Draft({ ...begin, defaults: { ...begin.defaults, learning_rate: rate } });
  draft.settings.learning_rate = rate;
  draft.chooseModel(begin.catalog[0]!);
  expect(draft.settings.learning_rate).toBe(null);
  draft.chooseModel(begin.starter);
  expect(draft.settings.learning_rate).toBe(rate);
  draft.settings.learning_rate = 1e-4;
  draft.chooseModel(begin.catalog[0]!);
  expect(draft.settings.learning_rate).toBe(1e-4);
});

test("a draft outlives the window, and an older Nibble", async () => {
  const draft = new Draft(begin);
  expect(draft.isChanged).toBe(false);
  draft.settings.lora.rank = 64;
  draft.budgetBytes = 8 * 2 ** 30;
  draft.chooseModel(begin.catalog[0]!);
  await draft.replan();
  const again = new Draft(begin);
  expect(again.settings.lora.rank).toBe(64);
  expect(again.budgetBytes).toBe(8 * 2 ** 30);
  expect(again.model.id).toBe(begin.catalog[0]!.id);

  // What an older one did not know has its default.
  const kept = JSON.parse(localStorage.getItem("nibble.draft")!);
  delete kept.settings.packing;
  delete kept.settings.lora.rslora;
  localStorage.setItem("nibble.draft", JSON.stringify(kept));
  const newer = new Draft(begin);
  expect(newer.settings.packing).toBe(begin.defaults.packing);
  expect(newer.settings.lora.rslora).toBe(begin.defaults.lora.rslora);
  expect(newer.settings.lora.rank).toBe(64);

  newer.startOver();
  expect(newer.isChanged).toBe(false);
  localStorage.setItem("nibble.draft", "{ damaged");
  expect(new Draft(begin).isChanged).toBe(false);
});

test("a built-in dataset is found where a newer program has it", async () => {
  const draft = new Draft(begin);
  draft.settings.data = begin.datasets[1]!.path;
  await draft.replan();
  const datasets = begin.datasets.map((of) => ({ ...of, path: `/newer${of.path}` }));
  const moved = new Draft({ ...begin, datasets });
  expect(moved.settings.data).toBe(datasets[1]!.path);
  draft.settings.data = "/mine.jsonl";
  await draft.replan();
  expect(new Draft({ ...begin, datasets }).settings.data).toBe("/mine.jsonl");
});

test("a model whose folder has gone is told beside the model", async () => {
  const gone = { ...begin.starter, id: "/gone", name: "gone", path: "/gone" };
  const settings = { ...begin.defaults, model: "/gone" };
  localStorage.setItem(
    "nibble.draft",
    JSON.stringify({ settings, model: gone, budgetBytes: null }),
  );
  const draft = new Draft(begin);
  await expect.poll(() => draft.modelFailure?.code).toBe("no_model");
});

test("a repeated run has the settings that it had", async () => {
  const draft = new Draft(begin);
  const settings = { ...begin.defaults, learning_rate: null, sequence: 64, seed: 7 };
  await draft.repeat(settings);
  expect(JSON.stringify(draft.settings)).toBe(JSON.stringify(settings));
  expect(draft.model.id).toBe(begin.starter.id);
  // Its model has gone: that is said, and the rest is repeated.
  await draft.repeat({ ...settings, model: "/gone", seed: 8 });
  expect(draft.modelFailure?.code).toBe("no_model");
  expect(draft.settings.model).toBe(begin.defaults.model);
  expect(draft.settings.seed).toBe(8);
});
