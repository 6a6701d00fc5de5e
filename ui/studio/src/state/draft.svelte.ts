// The run that is being put together: its settings, what they would cost, and how its data is read.

import { commandError, platform } from "../platform";
import type {
  CommandError,
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
    while (this.#next) {
      const now: () => Promise<void> = this.#next;
      this.#next = null;
      await now();
    }
    this.#running = false;
  }
}

type Remembered = { settings: RunSettings; model: ModelChoice; budgetBytes: number | null };

export class Draft {
  settings = $state<RunSettings>() as RunSettings;
  model = $state.raw<ModelChoice>() as ModelChoice;
  /** A card to hold the plans against; `null`: this machine. */
  budgetBytes = $state<number | null>(null);
  plan = $state.raw<PlanReport | null>(null);
  planFailure = $state.raw<CommandError | null>(null);
  inspection = $state.raw<Inspection | null>(null);
  inspectFailure = $state.raw<CommandError | null>(null);
  modelFailure = $state.raw<CommandError | null>(null);
  startFailure = $state.raw<CommandError | null>(null);
  starting = $state(false);
  readonly #plans = new Latest();
  readonly #inspections = new Latest();
  readonly #starter: { id: string; rate: number | null };

  constructor(startup: Startup) {
    this.#starter = { id: startup.starter.id, rate: startup.defaults.learning_rate ?? null };
    const remembered = sessionStorage.getItem(REMEMBERED);
    const former = remembered ? (JSON.parse(remembered) as Remembered) : null;
    this.settings = former?.settings ?? startup.defaults;
    this.model = former?.model ?? startup.starter;
    this.budgetBytes = former?.budgetBytes ?? null;
  }

  get method(): Method {
    return this.settings.method;
  }

  /** Plans anew; called whenever anything that decides memory has changed. */
  async replan(): Promise<void> {
    const settings = $state.snapshot(this.settings);
    const [model, budget_bytes] = [this.model.path ?? this.model.id, this.budgetBytes];
    sessionStorage.setItem(
      REMEMBERED,
      JSON.stringify({ settings, model: this.model, budgetBytes: budget_bytes }),
    );
    await this.#plans.run(async () => {
      try {
        this.plan = await platform.plan({ model, settings, budget_bytes });
        this.planFailure = null;
      } catch (thrown) {
        this.planFailure = commandError(thrown);
      }
    });
  }

  /** Reads the dataset anew. */
  async reinspect(): Promise<void> {
    const settings = $state.snapshot(this.settings);
    const model = this.model.path;
    if (model === null || settings.data === "") {
      this.inspection = null;
      this.inspectFailure = null;
      return;
    }
    await this.#inspections.run(async () => {
      try {
        this.inspection = await platform.inspect({ model, settings, limit: 5 });
        this.inspectFailure = null;
      } catch (thrown) {
        this.inspection = null;
        this.inspectFailure = commandError(thrown);
      }
    });
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
      this.chooseModel(await platform.openModel(path));
    } catch (thrown) {
      this.modelFailure = commandError(thrown);
    }
  }

  /** A file or folder that was dropped on the window: a file is data, a folder a model. */
  async take(path: string): Promise<void> {
    if (/\.(jsonl|json|txt|csv|parquet)$/i.test(path)) this.settings.data = path;
    else await this.openModel(path);
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
      return await platform.startRun($state.snapshot(this.settings), null);
    } catch (thrown) {
      this.startFailure = commandError(thrown);
      return null;
    } finally {
      this.starting = false;
    }
  }
}
