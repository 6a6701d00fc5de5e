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

  it("has what a card says of itself, as far as it does", () => {
    const history = new History();
    const steps = events.filter(({ event }) => event === "step").slice(0, 3);
    const card = {
      used_bytes: 5e9,
      process_bytes: null,
      temperature_celsius: 61,
      power_watts: null,
    };
    const onCard = steps.map((step, i) => ({ ...step, card: i === 0 ? null : card }) as Event);
    history.add(update(onCard));
    expect([...history.cardBytes.y]).toEqual([5e9, 5e9]);
    expect([...history.cardTemperature.x]).toEqual([2, 3]);
    expect(history.cardPower.length).toBe(0);
  });

  it("tells the time left only after a measured warm-up", () => {
    const history = new History();
    const ready = events.filter(({ event }) => event === "ready");
    const steps = events.filter(({ event }) => event === "step");
    history.add(update([...ready, ...steps.slice(0, 2)]));
    expect(history.secondsLeft).toBeNull();
    expect(history.secondsPerEpoch(0.1)).toBeNull();
    history.add(update(steps.slice(2, 40)));
    const { tokens, tokens_per_s } = history.latest!;
    expect(history.secondsLeft).toBeGreaterThan((20 * tokens) / tokens_per_s);
    expect(history.secondsLeft).toBeLessThan((80 * tokens) / tokens_per_s);
    expect(history.secondsPerEpoch(0.1)).toBeGreaterThan(0);
  });

  it("counts epochs by the tokens that are not held out", () => {
    const history = new History();
    const step = { lr: 1, grad_norm: 1, loss: 1, host_bytes: 1, device_bytes: 1, paged_bytes: 0 };
    const events: Event[] = [
      {
        event: "ready",
        n_steps: 20,
        step: 0,
        n_examples: 10,
        n_tokens: 1000,
        planned_peak_bytes: 1,
      },
      ...Array.from({ length: 12 }, (_, i): Event => ({
        event: "step",
        step: i + 1,
        tokens: 100,
        // Steps of two seconds; the first take long, and do not count.
        tokens_per_s: i < 2 ? 1 : 50,
        ...step,
      })),
    ];
    history.add(update(events));
    expect(history.epochs(0.25)).toBeCloseTo(1.6);
    expect(history.secondsPerEpoch(0.25)).toBeCloseTo(15);
    expect(history.secondsLeft).toBeCloseTo(16);
    // A run that was resumed from an earlier checkpoint begins again.
    history.add(update(events.slice(0, 6), true));
    expect(history.epochs(0.25)).toBeCloseTo(5 / 7.5);
  });
});
