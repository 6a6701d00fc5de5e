import { expect, test } from "vitest";
import recorded from "../platform/recorded/paged-run.json";
import type { MethodPlan, RunUpdate } from "../platform/types";
import { History } from "./history";
import {
  activationsWords,
  budgetStops,
  hostWords,
  outsideBytes,
  pagingPlace,
  pagingWords,
  placesWords,
  spareWords,
  wholeBytes,
} from "./plan";

const plan = recorded.plan.methods[0] as unknown as MethodPlan;

test("what becomes of activations is told", () => {
  const words = (recomputed_layers: number | null) =>
    activationsWords({ ...plan, recomputed_layers }, 16);
  expect([null, 0, 5, 16].map(words)).toEqual([
    null,
    "kept",
    "kept in 11 of 16 layers",
    "computed twice",
  ]);
});

test("what is taken for speed alone is told, where it is much", () => {
  const words = (fits: boolean, least: number) =>
    spareWords({ ...plan, fits, peak_bytes: 8 * 2 ** 30, smallest_bytes: least * 2 ** 30 });
  expect(words(true, 3)).toBe("It would do with 3.00 GiB; what it takes beyond makes it faster.");
  expect([words(true, 7.5), words(false, 3)]).toEqual([null, null]);
});

test("what is paged is told with its place, its traffic and its time", () => {
  const paging = plan.paging!;
  const { optimizer_bytes, weights_bytes, activations_bytes } = paging;
  expect(outsideBytes(plan)).toBe(optimizer_bytes + weights_bytes + activations_bytes);
  expect(outsideBytes(plan)).toBeGreaterThan(0);
  expect(wholeBytes(plan)).toBe(plan.peak_bytes + outsideBytes(plan));
  expect(pagingPlace(plan)).toBe("to disk");
  const timed = { ...plan, paging: { ...paging, step_bytes: 3 * 2 ** 30, step_seconds: 1.25 } };
  expect(pagingWords(timed)).toBe("Each step moves 3.00 GiB, which adds at most 1.3 s.");
  const untimed = { ...plan, paging: { ...paging, step_bytes: 3 * 2 ** 30, step_seconds: null } };
  expect(pagingWords(untimed)).toContain("not measured");
  const [inRam, gib] = [{ ...plan, host_bytes: 9 * 2 ** 30 }, 2 ** 30];
  expect(hostWords(inRam, 8 * gib)).toContain("has 8.00 GiB of RAM free");
  expect([hostWords(inRam, 9 * gib), hostWords(inRam, null)]).toEqual([null, null]);
  const onHost = { ...plan, host_bytes: 2 ** 30, page_file_bytes: 0 };
  expect(placesWords(onHost)).toBe("1.00 GiB of RAM beside the device");
  expect(placesWords({ ...onHost, page_file_bytes: 2 ** 20 })).toContain(
    "and a page file of 1.00 MiB",
  );
  const resident = { ...plan, paging: null, host_bytes: 0, page_file_bytes: 0 };
  expect([pagingPlace(resident), pagingWords(resident), placesWords(resident)]).toEqual([
    null,
    null,
    "",
  ]);
  expect(wholeBytes(resident)).toBe(plan.peak_bytes);
});

test("budgets rise evenly between what would do and what there is", () => {
  const stops = budgetStops(25 * 2 ** 20, 21 * 2 ** 30);
  expect(stops[0]).toBe(28 * 2 ** 20);
  expect(stops.at(-1)).toBe(20 * 2 ** 30);
  for (let i = 1; i < stops.length; i++) {
    expect(stops[i]! / stops[i - 1]!).toBeLessThanOrEqual(1.25);
    expect(stops[i]!).toBeGreaterThan(stops[i - 1]!);
  }
  expect(budgetStops(2 ** 30, 2 ** 20)).toEqual([]);
  for (const nonsense of [0, -1, NaN, Infinity]) expect(budgetStops(nonsense, 2 ** 30)).toEqual([]);
});

test("a run tells how much it pages in a second", () => {
  const history = new History();
  const update = { reset: true, events: recorded.events, state: "finished", error: null };
  history.add(update as unknown as RunUpdate);
  const { paged_bytes, tokens, tokens_per_s } = history.latest!;
  expect(paged_bytes).toBeGreaterThan(0);
  expect(history.pageTraffic.last).toBeCloseTo(paged_bytes / (tokens / tokens_per_s), 3);
  expect(paged_bytes).toBe(plan.paging!.step_bytes);
});
