// A run that is looked at: its history follows what the shell sends.

import { commandError, platform } from "../platform";
import type { Command, CommandError, RunDetails, TrainingDevice } from "../platform/types";
import { History, isActive } from "./history";

export class Watch {
  readonly run: string;
  readonly history = new History();
  /** Rises when the history has grown, at most once a frame. */
  version = $state(0);
  details = $state.raw<RunDetails | null>(null);
  failure = $state.raw<CommandError | null>(null);
  #stop: () => void = () => {};
  #ended = false;
  #frame = 0;

  /** Calls `onNews` when the run has ended or saved something. */
  constructor(run: string, onNews: () => void) {
    this.run = run;
    let wasActive = true;
    const watching = platform.watchRun(run, (update) => {
      this.history.add(update);
      const active = isActive(update.state);
      const saved = update.events.some(({ event }) => event === "checkpoint");
      if ((wasActive && !active) || (saved && !update.reset)) onNews();
      wasActive = active;
      this.#frame ||= requestAnimationFrame(() => {
        this.#frame = 0;
        this.version += 1;
      });
    });
    watching.then(
      (stop) => (this.#ended ? stop() : (this.#stop = stop)),
      (thrown) => (this.failure = commandError(thrown)),
    );
    void this.refresh();
  }

  async refresh(): Promise<void> {
    try {
      this.details = await platform.runDetails(this.run);
    } catch (thrown) {
      this.failure = commandError(thrown);
    }
  }

  async control(command: Command): Promise<void> {
    await this.#attempt(() => platform.controlRun(this.run, command));
  }

  /** Goes on, on another device than before if one is named. */
  async resume(device: TrainingDevice | null = null): Promise<void> {
    await this.#attempt(() => platform.resumeRun(this.run, device));
  }

  async #attempt(action: () => Promise<void>): Promise<void> {
    try {
      this.failure = null;
      await action();
    } catch (thrown) {
      this.failure = commandError(thrown);
    }
  }

  end(): void {
    this.#ended = true;
    cancelAnimationFrame(this.#frame);
    this.#stop();
  }
}
