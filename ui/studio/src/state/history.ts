// What the events of a run add up to.

import { Series } from "../charts/series";
import { count } from "./format";
import type { CommandError, Event, RunState, RunUpdate } from "../platform/types";

export type Sample = { step: number; prompt: string; text: string };
export type LogLine = { kind: "info" | "warning" | "error"; text: string };
type Step = Extract<Event, { event: "step" }>;
type Ready = Extract<Event, { event: "ready" }>;
type Done = Extract<Event, { event: "done" }>;

/** Steps that are not measured: one, whose memory is touched for the first time, and one more. */
const WARM_UP_STEPS = 2;

/** Everything that is known about a run. Grows in place: the page redraws when `version` rises. */
export class History {
  state: RunState = "loading";
  error: CommandError | null = null;
  loading = 0;
  ready: Ready | null = null;
  latest: Step | null = null;
  done: Done | null = null;
  loss = new Series();
  evaluation = new Series();
  hostBytes = new Series();
  deviceBytes = new Series();
  /** What a card says of itself: bytes in use by all programs, °C and W; empty where none computes. */
  cardBytes = new Series();
  cardTemperature = new Series();
  cardPower = new Series();
  throughput = new Series();
  learningRate = new Series();
  gradientNorm = new Series();
  /** Bytes a second between the device and what lies outside it. */
  pageTraffic = new Series();
  /** Seconds of each step, and tokens of all of them. */
  #seconds = new Series();
  #tokens = 0;
  samples: Sample[] = [];
  checkpoints: number[] = [];
  log: LogLine[] = [];
  version = 0;

  add(update: RunUpdate): void {
    if (update.reset) {
      const version = this.version;
      Object.assign(this, new History(), { version });
      this.#seconds = new Series();
      this.#tokens = 0;
    }
    this.state = update.state;
    this.error = update.error;
    for (const event of update.events) this.#take(event);
    this.version += 1;
  }

  #take(event: Event): void {
    const info = (text: string) => this.log.push({ kind: "info", text });
    switch (event.event) {
      case "loading":
        this.loading = event.total_bytes > 0 ? event.done_bytes / event.total_bytes : 0;
        break;
      case "ready":
        this.ready = event;
        info(
          `Ready: ${count(event.n_examples)} examples, ${count(event.n_tokens)} tokens, ${count(event.n_steps)} steps.`,
        );
        break;
      case "step":
        this.latest = event;
        this.loss.push(event.step, event.loss);
        this.hostBytes.push(event.step, event.host_bytes);
        this.deviceBytes.push(event.step, event.device_bytes);
        for (const [series, value] of [
          [this.cardBytes, event.card?.used_bytes],
          [this.cardTemperature, event.card?.temperature_celsius],
          [this.cardPower, event.card?.power_watts],
        ] as const) {
          if (value != null) series.push(event.step, value);
        }
        this.throughput.push(event.step, event.tokens_per_s);
        this.learningRate.push(event.step, event.lr);
        this.gradientNorm.push(event.step, event.grad_norm);
        this.pageTraffic.push(event.step, (event.paged_bytes * event.tokens_per_s) / event.tokens);
        this.#seconds.push(event.step, event.tokens / event.tokens_per_s);
        this.#tokens += event.tokens;
        break;
      case "eval":
        this.evaluation.push(event.step, event.loss);
        info(`Step ${count(event.step)}: held-out loss ${event.loss.toFixed(4)}.`);
        break;
      case "sample":
        this.samples.push({ step: event.step, prompt: event.prompt, text: event.text });
        break;
      case "checkpoint":
        this.checkpoints.push(event.step);
        info(`Step ${count(event.step)}: saved.`);
        break;
      case "warning":
        this.log.push({ kind: "warning", text: event.message });
        break;
      case "failed":
        this.log.push({
          kind: "error",
          text: event.hint ? `${event.message}; ${event.hint}` : event.message,
        });
        break;
      case "paused":
        info("Paused.");
        break;
      case "resumed":
        info("Resumed.");
        break;
      case "done":
        this.done = event;
        info(
          `Done after ${count(event.steps)} steps, with a loss of ${event.final_loss.toFixed(4)}.`,
        );
        break;
    }
  }

  get step(): number {
    return this.latest?.step ?? this.ready?.step ?? 0;
  }

  get nSteps(): number | null {
    return this.ready?.n_steps ?? null;
  }

  /** Seconds that a step takes, at the pace of the last hundred; after a short warm-up. */
  get #secondsPerStep(): number | null {
    if (this.#seconds.length <= WARM_UP_STEPS) return null;
    // The first steps of a process touch every page of its memory for the first time.
    const last = this.#seconds.y.subarray(WARM_UP_STEPS).subarray(-100);
    return last.reduce((sum, seconds) => sum + seconds, 0) / last.length;
  }

  /** Seconds that the steps left will take. */
  get secondsLeft(): number | null {
    const { nSteps, latest } = this;
    const pace = this.#secondsPerStep;
    if (nSteps === null || latest === null || pace === null) return null;
    return (nSteps - latest.step) * pace;
  }

  /** Tokens of one pass over the examples that are not held out. */
  #epochTokens(evalSplit: number): number | null {
    const tokens = (this.ready?.n_tokens ?? 0) * (1 - evalSplit);
    return tokens >= 1 ? tokens : null;
  }

  /** Passes over the data so far. */
  epochs(evalSplit: number): number | null {
    const tokens = this.#epochTokens(evalSplit);
    return tokens === null ? null : this.#tokens / tokens;
  }

  /** Seconds that every example once will take. */
  secondsPerEpoch(evalSplit: number): number | null {
    const [pace, tokens] = [this.#secondsPerStep, this.#epochTokens(evalSplit)];
    if (pace === null || tokens === null) return null;
    return (tokens / (this.#tokens / this.#seconds.length)) * pace;
  }
}

/** Whether a process is at work on the run. */
export function isActive(state: RunState): boolean {
  return ["loading", "training", "paused", "saving"].includes(state);
}
