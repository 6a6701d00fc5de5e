// What the events of a run add up to.

import { Series } from "../charts/series";
import type { CommandError, Event, RunState, RunUpdate } from "../platform/types";

export type Sample = { step: number; prompt: string; text: string };
export type LogLine = { kind: "info" | "warning" | "error"; text: string };
type Step = Extract<Event, { event: "step" }>;
type Ready = Extract<Event, { event: "ready" }>;
type Done = Extract<Event, { event: "done" }>;

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
  throughput = new Series();
  learningRate = new Series();
  gradientNorm = new Series();
  samples: Sample[] = [];
  checkpoints: number[] = [];
  log: LogLine[] = [];
  version = 0;

  add(update: RunUpdate): void {
    if (update.reset) {
      const version = this.version;
      Object.assign(this, new History(), { version });
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
          `Ready: ${event.n_examples} examples, ${event.n_tokens} tokens, ${event.n_steps} steps.`,
        );
        break;
      case "step":
        this.latest = event;
        this.loss.push(event.step, event.loss);
        this.hostBytes.push(event.step, event.host_bytes);
        this.deviceBytes.push(event.step, event.device_bytes);
        this.throughput.push(event.step, event.tokens_per_s);
        this.learningRate.push(event.step, event.lr);
        this.gradientNorm.push(event.step, event.grad_norm);
        break;
      case "eval":
        this.evaluation.push(event.step, event.loss);
        info(`Step ${event.step}: held-out loss ${event.loss.toFixed(4)}.`);
        break;
      case "sample":
        this.samples.push({ step: event.step, prompt: event.prompt, text: event.text });
        break;
      case "checkpoint":
        this.checkpoints.push(event.step);
        info(`Step ${event.step}: saved.`);
        break;
      case "warning":
        this.log.push({ kind: "warning", text: event.message });
        break;
      case "paused":
        info("Paused.");
        break;
      case "resumed":
        info("Resumed.");
        break;
      case "done":
        this.done = event;
        info(`Done after ${event.steps} steps, with a loss of ${event.final_loss.toFixed(4)}.`);
        break;
    }
  }

  get step(): number {
    return this.latest?.step ?? this.ready?.step ?? 0;
  }

  get nSteps(): number | null {
    return this.ready?.n_steps ?? null;
  }

  /** Seconds that a token takes, at the pace of the last hundred steps; after a short warm-up. */
  get #secondsPerToken(): number | null {
    if (this.throughput.length < 3) return null;
    const paces = this.throughput.y.subarray(-100);
    return paces.reduce((sum, pace) => sum + 1 / pace, 0) / paces.length;
  }

  /** Seconds that the steps left will take. */
  get secondsLeft(): number | null {
    const { nSteps, latest } = this;
    const pace = this.#secondsPerToken;
    if (nSteps === null || latest === null || pace === null) return null;
    return (nSteps - latest.step) * latest.tokens * pace;
  }

  /** Seconds that every example once will take. */
  get secondsPerEpoch(): number | null {
    const pace = this.#secondsPerToken;
    return pace === null || this.ready === null ? null : this.ready.n_tokens * pace;
  }
}

/** Whether a process is at work on the run. */
export function isActive(state: RunState): boolean {
  return ["loading", "training", "paused", "saving"].includes(state);
}
