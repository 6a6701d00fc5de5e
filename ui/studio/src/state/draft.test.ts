import { expect, test } from "vitest";
import recorded from "../platform/recorded/startup.json";
import type { Startup } from "../platform/types";
import { Draft } from "./draft.svelte";

test("the starter's learning rate is not another model's", () => {
  const begin = recorded as unknown as Startup;
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
