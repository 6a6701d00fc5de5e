// The app: one call of the page is one command of the shell.

import { Channel, invoke } from "@tauri-apps/api/core";
import { listen } from "@tauri-apps/api/event";
import type { Platform } from ".";
import type { AnswerPiece, Dropped, ExportProgress, RunUpdate } from "./types";

function channel<T>(onMessage: (message: T) => void): Channel<T> {
  const channel = new Channel<T>();
  channel.onmessage = onMessage;
  return channel;
}

export const tauri: Platform = {
  startup: () => invoke("startup"),
  savePreferences: (preferences) => invoke("save_preferences", { preferences }),
  models: () => invoke("models"),
  openModel: (path) => invoke("open_model", { path }),
  plan: (request) => invoke("plan", { request }),
  measurePageRates: () => invoke("measure_page_rates"),
  inspect: (request, onShare) => invoke("inspect", { request, channel: channel<number>(onShare) }),
  startRun: (settings, name) => invoke("start_run", { settings, name }),
  resumeRun: (run, device) => invoke("resume_run", { run, device }),
  repeatSettings: (run) => invoke("repeat_settings", { run }),
  controlRun: (run, command) => invoke("control_run", { run, command }),
  async watchRun(run, onUpdate) {
    let wanted = true;
    const watch = await invoke<number>("watch_run", {
      run,
      channel: channel<RunUpdate>((update) => {
        if (wanted) onUpdate(update);
      }),
    });
    return () => {
      wanted = false;
      void invoke("unwatch_run", { watch });
    };
  },
  runDetails: (run) => invoke("run_details", { run }),
  runs: () => invoke("runs"),
  openRun: (path) => invoke("open_run", { path }),
  deleteRun: (path) => invoke("delete_run", { path }),
  showInFolder: (path) => invoke("show_in_folder", { path }),
  answer: (request, onPiece) =>
    invoke("answer", { request, channel: channel<AnswerPiece>(onPiece) }),
  stopAnswer: () => invoke("stop_answer"),
  exportRun: (request, onProgress) =>
    invoke("export_run", { request, channel: channel<ExportProgress>(onProgress) }),
  chooseFolder: (title) => invoke("choose_folder", { title }),
  chooseFile: (title, extensions) => invoke("choose_file", { title, extensions }),
  popOut: (run) => invoke("pop_out", { run }),
  closeWindow: (choice) => invoke("close_window", { choice }),
  onCloseRequested: (listener) =>
    listen<boolean>("close-requested", (event) => listener(event.payload)),
  onFilesHeld: (listener) => listen<boolean>("files-held", (event) => listener(event.payload)),
  onFilesDropped: (listener) =>
    listen<Dropped[]>("files-dropped", (event) => listener(event.payload)),
};
