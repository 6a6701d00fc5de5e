import { describe, expect, it } from "vitest";
import recordedRun from "../platform/recorded/run.json";
import type { Event, RunUpdate } from "../platform/types";
import { History } from "./history";

const events = recordedRun.events as Event[];
const update = (events: Event[], reset = false): RunUpdate => ({
  reset,
  events,
  state: "training",
  error: null,
});

describe("the history of a run", () => {
  it("is what its events say", () => {
    const history = new History();
    history.add(update(events));
    expect(history.step).toBe(80);
    expect(history.nSteps).toBe(80);
    expect(history.loss.length).toBe(80);
    expect(history.evaluation.length).toBe(4);
    expect(history.samples[0]?.step).toBe(0);
    expect(history.samples.at(-1)?.text).toContain("matey");
    expect(history.done?.allocated_peak_bytes).toBe(history.done?.planned_peak_bytes);
  });

  it("is the same however its events arrive, and begins anew when told", () => {
    const whole = new History();
    whole.add(update(events));
    const parts = new History();
    parts.add(update(events.slice(0, 50)));
    parts.add(update(events.slice(0, 30), true));
    parts.add(update(events.slice(30)));
    expect([...parts.loss.y]).toEqual([...whole.loss.y]);
    expect(parts.log).toEqual(whole.log);
    expect(parts.version).toBe(3);
  });

  it("tells the time left only after a measured warm-up", () => {
    const history = new History();
    const ready = events.filter(({ event }) => event === "ready");
    const steps = events.filter(({ event }) => event === "step");
    history.add(update([...ready, ...steps.slice(0, 2)]));
    expect(history.secondsLeft).toBeNull();
    expect(history.secondsPerEpoch).toBeNull();
    history.add(update(steps.slice(2, 40)));
    const { tokens, tokens_per_s } = history.latest!;
    expect(history.secondsLeft).toBeGreaterThan((20 * tokens) / tokens_per_s);
    expect(history.secondsLeft).toBeLessThan((80 * tokens) / tokens_per_s);
    expect(history.secondsPerEpoch).toBeGreaterThan(0);
  });
});
