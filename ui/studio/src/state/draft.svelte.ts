// The run that is being put together: its settings, what they would cost, and how its data is read.

import { commandError, platform } from "../platform";
import type {
  CommandError,
  Device,
  Inspection,
  Method,
  ModelChoice,
  PlanReport,
  RunSettings,
  Startup,
  Suggestion,
} from "../platform/types";

const REMEMBERED = "nibble.draft";

/** Keeps only the latest of calls that follow each other faster than they are answered. */
class Latest {
  #running = false;
  #next: (() => Promise<void>) | null = null;

  async run(job: () => Promise<void>): Promise<void> {
    this.#next = job;
    if (this.#running) return;
    this.#running = true;
    try {
      while (this.#next) {
        const now: () => Promise<void> = this.#next;
        this.#next = null;
        await now();
      }
    } finally {
      this.#running = false;
    }
  }
}

type Remembered = {
  settings: RunSettings;
  model: ModelChoice;
  budgetBytes: number | null;
  /** The built-in dataset, if it is one. */
  dataset?: string | null;
};

/** The draft of the last time; what a newer Nibble has added since has its default. */
function recall(startup: Startup): Remembered | null {
  try {
    const former = JSON.parse(localStorage.getItem(REMEMBERED) ?? "null") as Remembered | null;
    if (!former) return null;
    const { defaults, starter, datasets } = startup;
    // What is built in may have moved with the program.
    const isStarter = former.model.name === starter.name;
    const dataset = datasets.find(({ name }) => name === former.dataset);
    const settings = {
      ...defaults,
      ...former.settings,
      lora: { ...defaults.lora, ...former.settings.lora },
      samples: { ...defaults.samples, ...former.settings.samples },
      columns: { ...defaults.columns, ...former.settings.columns },
      // Once a flag.
      ...(typeof former.settings.recompute === "string" ? {} : { recompute: defaults.recompute }),
      ...(isStarter ? { model: defaults.model } : {}),
      ...(dataset ? { data: dataset.path } : {}),
      // What computes is set for every run, in the settings.
      device: defaults.device,
    };
    return { ...former, settings, model: isStarter ? starter : former.model };
  } catch {
    // A draft that cannot be read is none.
    return null;
  }
}

export class Draft {
  settings = $state<RunSettings>() as RunSettings;
  model = $state.raw<ModelChoice>() as ModelChoice;
  /** A card to hold the plans against; `null`: this machine. */
  budgetBytes = $state<number | null>(null);
  plan = $state.raw<PlanReport | null>(null);
  planFailure = $state.raw<CommandError | null>(null);
  inspection = $state.raw<Inspection | null>(null);
  inspectFailure = $state.raw<CommandError | null>(null);
  /** The share of the dataset that is read; `null` when nothing is being read. */
  inspectShare = $state<number | null>(null);
  modelFailure = $state.raw<CommandError | null>(null);
  startFailure = $state.raw<CommandError | null>(null);
  /** What the run is to be called; empty: by its date, method and model. */
  name = $state("");
  starting = $state(false);
  readonly #plans = new Latest();
  #look = 0;
  /** What this machine can give, as the planner last saw it. */
  hereBytes = $state<number>(0);
  #measured = false;
  readonly #startup: Startup;
  readonly #starter: { id: string; rate: number | null };

  constructor(startup: Startup) {
    this.#startup = startup;
    this.#starter = { id: startup.starter.id, rate: startup.defaults.learning_rate ?? null };
    const former = recall(startup);
    this.settings = former?.settings ?? structuredClone(startup.defaults);
    this.model = former?.model ?? startup.starter;
    this.budgetBytes = former?.budgetBytes ?? null;
    const own = startup.devices.find(({ id }) => id === startup.preferences.device);
    this.hereBytes = own?.free_bytes ?? 0;
    // A folder may have gone since.
    if (former?.model.path && former.model.id !== startup.starter.id) {
      void this.openModel(former.model.path);
    }
  }

  /** Computes on another device from now on. */
  useDevice({ id, free_bytes }: Device): void {
    this.#measured = false;
    this.#startup.defaults.device = id;
    this.settings.device = id;
    this.hereBytes = free_bytes;
  }

  /** Whether anything was changed since the beginning. */
  get isChanged(): boolean {
    const { defaults, starter } = this.#startup;
    return (
      this.model.id !== starter.id ||
      this.budgetBytes !== null ||
      JSON.stringify(this.settings) !== JSON.stringify(defaults)
    );
  }

  /** Begins again with what a first run has. */
  startOver(): void {
    this.model = this.#startup.starter;
    this.settings = structuredClone(this.#startup.defaults);
    this.budgetBytes = null;
    this.modelFailure = this.startFailure = null;
  }

  get method(): Method {
    return this.settings.method;
  }

  /** Plans anew; called whenever anything that decides memory has changed. */
  async replan(): Promise<void> {
    const settings = $state.snapshot(this.settings);
    const { model, budgetBytes: budget_bytes } = this;
    // For a card as a card lays it out, whatever this machine has, and may have for a run.
    const ofCard = { ...settings, device: "cuda" as const, budget_bytes: null };
    const planned = this.#plans.run(async () => {
      const shown = budget_bytes === null ? settings : ofCard;
      const request = { model: model.path ?? model.id, settings: shown, budget_bytes };
      try {
        this.plan = await platform.plan(request);
        if (budget_bytes === null) this.hereBytes = this.plan.available_bytes;
        this.planFailure = null;
      } catch (thrown) {
        this.planFailure = commandError(thrown);
        return;
      }
      if (this.plan.methods.some(({ paging }) => paging?.step_seconds === null)) this.#measure();
    });
    // After the question is asked: what is seen of a change does not wait for a disk.
    this.#remember({ settings, model, budgetBytes: budget_bytes });
    await planned;
  }

  /** Keeps the draft for the next time. */
  #remember(draft: Remembered): void {
    const dataset = this.#startup.datasets.find(({ path }) => path === draft.settings.data)?.name;
    try {
      localStorage.setItem(REMEMBERED, JSON.stringify({ ...draft, dataset }));
    } catch {
      // Without room for it the next time begins with the draft of before.
    }
  }

  /** Has the pace of pages measured, once, when a plan first asks for it. */
  #measure(): void {
    if (this.#measured) return;
    this.#measured = true;
    // Without it a plan says that the time is not known.
    void platform.measurePageRates().then(
      () => this.replan(),
      () => {},
    );
  }

  /** Reads the dataset anew. */
  async reinspect(): Promise<void> {
    const settings = $state.snapshot(this.settings);
    const model = this.model.path;
    const look = ++this.#look;
    const isLatest = (): boolean => look === this.#look;
    let [inspection, failure]: [Inspection | null, CommandError | null] = [null, null];
    // What tells the share and what answers come apart, in any order.
    let isOver = false;
    if (model !== null && settings.data !== "") {
      try {
        inspection = await platform.inspect({ model, settings, limit: 5 }, (share) => {
          if (isLatest() && !isOver) this.inspectShare = share;
        });
      } catch (thrown) {
        failure = commandError(thrown);
      }
    }
    isOver = true;
    // What was looked at since is what is shown.
    if (!isLatest()) return;
    this.inspectShare = null;
    this.inspection = inspection;
    this.inspectFailure = failure;
  }

  chooseModel(model: ModelChoice): void {
    this.modelFailure = null;
    this.model = model;
    this.settings.model = model.path ?? model.id;
    this.settings.sequence = Math.min(this.settings.sequence, model.summary.context);
    // What suits the small starter would ruin a model of the usual size.
    const { id, rate } = this.#starter;
    const isSet = (this.settings.learning_rate ?? null) === rate;
    if (model.id !== id && isSet) this.settings.learning_rate = null;
    if (model.id === id && this.settings.learning_rate == null) this.settings.learning_rate = rate;
  }

  async openModel(path: string): Promise<void> {
    try {
      const { starter } = this.#startup;
      this.chooseModel(path === starter.path ? starter : await platform.openModel(path));
    } catch (thrown) {
      this.modelFailure = commandError(thrown);
    }
  }

  /** Begins with the settings of a run; where its model is gone, with the model of before. */
  async repeat(settings: RunSettings): Promise<void> {
    await this.openModel(settings.model);
    const sequence = Math.min(settings.sequence, this.model.summary.context);
    const { model, device } = this.settings;
    this.settings = { ...settings, sequence, model, device };
  }

  /** Changes the settings as a suggestion of the planner says. */
  apply({ settings }: Suggestion): void {
    this.settings.method = settings.method;
    this.settings.batch = settings.batch;
    this.settings.sequence = settings.sequence;
    this.settings.recompute = settings.recompute;
    this.settings.paged = settings.paged;
    if (settings.rank !== null) this.settings.lora.rank = settings.rank;
  }

  /** Starts the run; its folder, or `null` when it could not start. */
  async start(): Promise<string | null> {
    this.starting = true;
    try {
      this.startFailure = null;
      const name = this.name.trim();
      const run = await platform.startRun($state.snapshot(this.settings), name || null);
      this.name = "";
      return run;
    } catch (thrown) {
      this.startFailure = commandError(thrown);
      return null;
    } finally {
      this.starting = false;
    }
  }
}
