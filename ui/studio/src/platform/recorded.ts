// A plain browser: answers recorded from real calls (`browser/record.js`). What was not recorded is
// an error, except for plans, where the nearest recorded sizes answer.

import type { Platform } from ".";
import inspections from "./recorded/inspections.json";
import recordedPagedPlans from "./recorded/paged-plans.json";
import recordedPagedRun from "./recorded/paged-run.json";
import plans from "./recorded/plans.json";
import recordedRun from "./recorded/run.json";
import recordedStartup from "./recorded/startup.json";
import type {
  Command,
  CommandError,
  Event,
  Inspection,
  PlanReport,
  RunDetails,
  RunSettings,
  RunState,
  RunSummary,
  RunUpdate,
  Startup,
} from "./types";

const startup = recordedStartup as Startup;
const pagedPlans = recordedPagedPlans as unknown as Record<string, PlanReport[]>;
/** A run as it was, with everything that it told. */
type Recording = { path: string; events: Event[]; settings: RunSettings; plan: PlanReport };
const resident = recordedRun as unknown as Recording;
const paged = recordedPagedRun as unknown as Recording;
const pause = (milliseconds: number) => new Promise((done) => setTimeout(done, milliseconds));

function refuse(code: string, message: string, hint: string): never {
  throw { code, message, hint } satisfies CommandError;
}

function nearest(values: number[], wanted: number): number {
  return values.reduce((best, value) =>
    Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best,
  );
}

/** A run that is played back, a few events a frame. */
class Playback {
  state: RunState;
  sent: Event[] = [];
  #watchers = new Set<(update: RunUpdate) => void>();
  #paused = false;
  #stopped = false;

  constructor(
    readonly path: string,
    readonly settings: RunSettings,
    readonly startedMs: number,
    isOver: boolean,
    readonly recording: Recording,
  ) {
    this.state = isOver ? "finished" : "loading";
    if (isOver) this.sent = recording.events;
    else void this.#play();
  }

  async #play(): Promise<void> {
    for (const event of this.recording.events) {
      if (this.#stopped) return this.tell([], "stopped");
      if (event.event === "step" || event.event === "loading") await pause(25);
      while (this.#paused && !this.#stopped) await pause(30);
      this.sent.push(event);
      this.tell([event], event.event === "loading" ? "loading" : "training");
    }
    this.tell([], "finished");
  }

  /** Sends what is new to everyone who watches. */
  protected tell(events: Event[], state: RunState): void {
    this.state = state;
    const update = { reset: false, events, state, error: null };
    for (const watcher of this.#watchers) watcher(update);
  }

  control(command: Command): void {
    if (command === "stop") this.#stopped = true;
    else this.#paused = command === "pause";
    if (command === "stop") return;
    const event: Event = { event: command === "pause" ? "paused" : "resumed" };
    this.sent.push(event);
    this.tell([event], command === "pause" ? "paused" : "training");
  }

  watch(watcher: (update: RunUpdate) => void): () => void {
    watcher({ reset: true, events: this.sent, state: this.state, error: null });
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  get summary(): RunSummary {
    const steps = this.sent.filter((event) => event.event === "step");
    const losses = steps.map((step) => step.loss);
    return {
      path: this.path,
      name: this.path.split("/").at(-1) ?? "",
      model_name: "starter",
      data_name: this.settings.data.split("/").at(-1)?.replace(".jsonl", "") ?? "",
      method: this.settings.method,
      state: this.state,
      started_ms: this.startedMs,
      steps: steps.length,
      n_steps: this.recording.settings.steps ?? 0,
      final_loss: losses.at(-1) ?? null,
      peak_bytes: steps.at(-1)?.host_bytes ?? null,
      planned_bytes: this.recording.plan.methods[0]?.peak_bytes ?? null,
      sparkline: losses.slice(-60),
      checkpoints: this.sent.flatMap((event) => (event.event === "checkpoint" ? [event.step] : [])),
    };
  }
}

/** A run of a hundred thousand steps that goes on and on: the recorded one, over and over. */
class Endless extends Playback {
  constructor(path: string, settings: RunSettings) {
    super(path, settings, Date.UTC(2026, 10, 20), true, resident);
    this.sent = [...resident.events];
    while (this.sent.length < 100_000) this.#again();
    this.state = "training";
    setInterval(() => this.tell([this.#again()], "training"), 50);
  }

  #again(): Event {
    const steps = resident.events.filter((event) => event.event === "step");
    const step = this.sent.length;
    const event = { ...steps[step % steps.length]!, step };
    this.sent.push(event);
    return event;
  }
}

const known: Playback[] = [];
if (location.search.includes("endless")) {
  known.push(new Endless("/home/you/runs/endless", resident.settings));
} else if (!location.search.includes("empty")) {
  for (const [recording, day] of [
    [resident, 22],
    [paged, 21],
  ] as const) {
    const { path, settings } = recording;
    known.push(new Playback(path, settings, Date.UTC(2026, 10, day, 18, 4), true, recording));
  }
}

function find(path: string): Playback {
  const run = known.find((run) => run.path === path);
  return run ?? refuse("no_run", `${path} is no run folder.`, "Choose a folder with a run.toml.");
}

function onWindow<T>(name: string, listener: (detail: T) => void): () => void {
  const hear = (event: globalThis.Event) => listener((event as CustomEvent<T>).detail);
  window.addEventListener(name, hear);
  return () => window.removeEventListener(name, hear);
}

export const recorded: Platform = {
  startup: async () => structuredClone(startup),
  async savePreferences({ theme }) {
    if (!location.search.includes("full")) return;
    // When the page is told; and a disk has room for this alone.
    await new Promise((done) => addEventListener("save", done, { once: true }));
    if (theme === "dark") return;
    refuse(
      "preferences_unwritable",
      "Could not write /home/you/nibble/preferences.json: No space left on device (os error 28).",
      "Check the free space and the folder's permissions.",
    );
  },
  models: async () => [],
  async openModel(path) {
    if (path === startup.starter.path) return startup.starter;
    return refuse(
      "no_model",
      `${path} has no config.json.`,
      "Choose a model's folder, with config.json, safetensors and tokenizer.json.",
    );
  },
  async plan({ model, settings, budget_bytes }) {
    const all = plans as unknown as Record<string, PlanReport>;
    const name = model === startup.starter.path ? "starter" : model;
    const sizes = Object.keys(all)
      .filter((key) => key.startsWith(`${name} `))
      .map((key) => key.split(" ").slice(1).map(Number));
    if (sizes.length === 0) {
      return refuse("unknown_model", `${model} was not recorded.`, "Choose another model.");
    }
    const pick = (i: number, wanted: number) =>
      nearest(
        sizes.map((size) => size[i]!),
        wanted,
      );
    const key = [pick(0, settings.sequence), pick(1, settings.batch), pick(2, settings.lora.rank)];
    const report = structuredClone(all[[name, ...key].join(" ")]!);
    const budget = budget_bytes ?? settings.budget_bytes ?? report.budget_bytes;
    // Within less memory, the recorded plans of the nearest budget that is no larger.
    const within =
      budget < report.budget_bytes
        ? pagedPlans[name]?.find((plan) => plan.budget_bytes <= budget)
        : undefined;
    report.available_bytes = report.budget_bytes;
    report.budget_bytes = budget;
    if (within && settings.paged !== "off") report.methods = structuredClone(within.methods);
    for (const plan of report.methods) plan.fits = plan.peak_bytes <= report.budget_bytes;
    return report;
  },
  // The recorded plans were made where it was measured.
  measurePageRates: async () => {},
  async inspect({ settings }) {
    const all = inspections as unknown as Record<string, Inspection>;
    return (
      all[settings.data] ??
      refuse(
        "unknown_format",
        `${settings.data} has no columns that are recognised.`,
        'Write lines such as {"prompt": "…", "completion": "…"}.',
      )
    );
  },
  async startRun(settings) {
    const path = `/home/you/runs/2026-11-23 ${settings.method} starter ${known.length + 1}`;
    const recording = settings.budget_bytes == null ? resident : paged;
    known.unshift(new Playback(path, settings, Date.now(), false, recording));
    return path;
  },
  resumeRun: async (run) => refuse("complete", `${run} was recorded to its end.`, "Start another."),
  repeatSettings: async (run) => find(run).settings,
  controlRun: async (run, command) => find(run).control(command),
  watchRun: async (run, onUpdate) => find(run).watch(onUpdate),
  async runDetails(run): Promise<RunDetails> {
    const { summary, settings, recording } = find(run);
    return { summary, settings, plan: recording.plan };
  },
  runs: async () => known.map((run) => run.summary),
  openRun: async (path) => find(path).summary,
  async deleteRun(path) {
    known.splice(known.indexOf(find(path)), 1);
  },
  showInFolder: async () => {},
  async answer(_, onPiece) {
    const said = resident.events.filter((event) => event.event === "sample");
    const texts = { base: said[0]?.text ?? "", tuned: said.at(-1)?.text ?? "" };
    for (const side of ["base", "tuned"] as const) {
      const words = texts[side].split(/(?<= )/);
      for (const [i, text] of words.entries()) {
        await pause(40);
        onPiece({ side, text, done: i === words.length - 1, tokens: i + 1, tokens_per_s: 240 });
      }
    }
  },
  stopAnswer: async () => {},
  async exportRun({ to, format }, onProgress) {
    onProgress({ stage: "opening", share: null });
    await pause(100);
    onProgress({ stage: "writing", share: format === "merged" ? 0.5 : null });
    await pause(200);
    onProgress({ stage: "checking", share: null });
    await pause(100);
    return {
      path: to,
      verified: true,
      max_abs_logit_diff: 0,
      second_max_abs_logit_diff: 7.9e-6,
    };
  },
  chooseFolder: async () => null,
  chooseFile: async () => null,
  popOut: async () => {},
  closeWindow: async () => {},
  onCloseRequested: async (listener) => onWindow("close-requested", listener),
  // A browser's own events stand for the shell's: a test sends them.
  onFilesHeld: async (listener) => onWindow("files-held", listener),
  onFilesDropped: async (listener) => onWindow("files-dropped", listener),
};
