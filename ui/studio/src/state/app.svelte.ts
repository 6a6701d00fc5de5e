// What the whole page shares: what there was at the start, where one is, and which run is looked at.

import { applyTheme, type Scheme } from "../theme/tokens";
import { commandError, platform } from "../platform";
import type {
  CommandError,
  Dropped,
  ModelChoice,
  RunSummary,
  Startup,
  Theme,
} from "../platform/types";
import { Draft } from "./draft.svelte";
import { Watch } from "./watch.svelte";

export type PageName = "new" | "run" | "runs" | "playground" | "export" | "settings";

const REMEMBERED = "nibble.place";

class App {
  startup = $state.raw<Startup | null>(null);
  failure = $state.raw<CommandError | null>(null);
  page = $state<PageName>("new");
  scheme = $state<Scheme>("light");
  runs = $state.raw<RunSummary[]>([]);
  watch = $state.raw<Watch | null>(null);
  draft = $state.raw<Draft | null>(null);
  /** The models in the models' folder. */
  models = $state.raw<ModelChoice[]>([]);
  /** Why a run from elsewhere could not be opened. */
  openFailure = $state.raw<CommandError | null>(null);
  asksToClose = $state(false);
  hasTray = $state(true);
  /** Whether something is held over the window that could be dropped. */
  isHeldOver = $state(false);
  #unfollow: () => void = () => {};

  async start(): Promise<void> {
    try {
      const startup = await platform.startup();
      this.startup = startup;
      this.setTheme(startup.preferences.theme);
      this.draft = new Draft(startup);
      void this.refreshModels();
      await this.refreshRuns();
      await this.#recall();
    } catch (thrown) {
      this.failure = commandError(thrown);
    }
    await platform.onCloseRequested((hasTray) => {
      this.hasTray = hasTray;
      this.asksToClose = true;
    });
    await platform.onFilesHeld((held) => (this.isHeldOver = held));
    await platform.onFilesDropped((dropped) => {
      for (const one of dropped) void this.take(one);
    });
  }

  /** Something that was dropped on the window. */
  async take({ kind, path }: Dropped): Promise<void> {
    if (kind === "run") {
      await this.openRunFrom(path);
      return;
    }
    this.open("new");
    if (kind === "data" && this.draft) this.draft.settings.data = path;
    if (kind === "model") await this.draft?.openModel(path);
  }

  /** Looks at a run from anywhere, and remembers it. */
  async openRunFrom(path: string): Promise<void> {
    try {
      this.openFailure = null;
      const run = await platform.openRun(path);
      this.openRun(run.path);
    } catch (thrown) {
      this.open("runs");
      this.openFailure = commandError(thrown);
    }
  }

  open(page: PageName): void {
    this.page = page;
    this.openFailure = null;
    this.#remember();
    if (page === "new") void this.refreshModels();
    else void this.refreshRuns();
  }

  /** Looks at a run. */
  openRun(path: string): void {
    if (this.watch?.run !== path) {
      this.watch?.end();
      this.watch = new Watch(path, () => void this.refreshRuns());
    }
    this.open("run");
  }

  closeRun(path: string): void {
    if (this.watch?.run !== path) return;
    this.watch.end();
    this.watch = null;
  }

  async refreshRuns(): Promise<void> {
    try {
      this.runs = await platform.runs();
      this.failure = null;
    } catch (thrown) {
      this.failure = commandError(thrown);
    }
  }

  async refreshModels(): Promise<void> {
    try {
      this.models = await platform.models();
    } catch (thrown) {
      this.failure = commandError(thrown);
    }
  }

  setTheme(theme: Theme): void {
    this.#unfollow();
    this.#unfollow = applyTheme(theme, (scheme) => (this.scheme = scheme));
  }

  /** A page that is loaded again shows what it showed. */
  #remember(): void {
    const place = { page: this.page, run: this.watch?.run ?? null };
    sessionStorage.setItem(REMEMBERED, JSON.stringify(place));
  }

  async #recall(): Promise<void> {
    const place = JSON.parse(sessionStorage.getItem(REMEMBERED) ?? "null") as {
      page: PageName;
      run: string | null;
    } | null;
    const training = this.runs.find((run) => ["training", "paused", "loading"].includes(run.state));
    const run = place?.run ?? training?.path ?? null;
    if (run !== null && this.runs.some((known) => known.path === run)) this.openRun(run);
    if (place) this.open(place.page === "run" && !this.watch ? "new" : place.page);
  }
}

export const app = new App();
