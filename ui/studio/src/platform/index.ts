// The only way out of the page. In the app it is Tauri; in a plain browser, for design work and
// tests, it is recorded data of real runs.

import { tauri } from "./tauri";
import type {
  AnswerPiece,
  AnswerRequest,
  CloseChoice,
  Command,
  CommandError,
  Dropped,
  ExportProgress,
  ExportReport,
  ExportRequest,
  InspectRequest,
  Inspection,
  ModelChoice,
  PlanReport,
  PlanRequest,
  Preferences,
  RunDetails,
  RunSettings,
  RunSummary,
  RunUpdate,
  Startup,
  TrainingDevice,
} from "./types";

export interface Platform {
  startup(): Promise<Startup>;
  savePreferences(preferences: Preferences): Promise<void>;
  /** The models in the models' folder. */
  models(): Promise<ModelChoice[]>;
  openModel(path: string): Promise<ModelChoice>;
  plan(request: PlanRequest): Promise<PlanReport>;
  /** Measures how fast pages move on this machine; plans tell their time from then on. */
  measurePageRates(): Promise<void>;
  /** Tells the share of the file that is read. The next call ends this one. */
  inspect(request: InspectRequest, onShare: (share: number) => void): Promise<Inspection>;
  startRun(settings: RunSettings, name: string | null): Promise<string>;
  resumeRun(run: string, device: TrainingDevice | null): Promise<void>;
  repeatSettings(run: string): Promise<RunSettings>;
  controlRun(run: string, command: Command): Promise<void>;
  /** Sends what happened to a run and what happens next. Returns how to end that. */
  watchRun(run: string, onUpdate: (update: RunUpdate) => void): Promise<() => void>;
  runDetails(run: string): Promise<RunDetails>;
  runs(): Promise<RunSummary[]>;
  openRun(path: string): Promise<RunSummary>;
  deleteRun(path: string): Promise<void>;
  showInFolder(path: string): Promise<void>;
  /** Ends when every side has answered. */
  answer(request: AnswerRequest, onPiece: (piece: AnswerPiece) => void): Promise<void>;
  stopAnswer(): Promise<void>;
  exportRun(
    request: ExportRequest,
    onProgress: (progress: ExportProgress) => void,
  ): Promise<ExportReport>;
  chooseFolder(title: string): Promise<string | null>;
  chooseFile(title: string, extensions: string[]): Promise<string | null>;
  popOut(run: string): Promise<void>;
  closeWindow(choice: CloseChoice): Promise<void>;
  /** The window is to close while a run trains; and whether there is a tray to train on in. */
  onCloseRequested(listener: (hasTray: boolean) => void): Promise<() => void>;
  /** Whether something is held over the window. */
  onFilesHeld(listener: (held: boolean) => void): Promise<() => void>;
  onFilesDropped(listener: (dropped: Dropped[]) => void): Promise<() => void>;
}

/** Whatever was thrown, as an error that can be shown. */
export function commandError(thrown: unknown): CommandError {
  if (typeof thrown === "object" && thrown !== null && "message" in thrown) {
    const { code, message, hint } = thrown as Partial<CommandError>;
    return { code: code ?? "unknown", message: String(message), hint: hint ?? "" };
  }
  return { code: "unknown", message: String(thrown), hint: "" };
}

const inApp = "__TAURI_INTERNALS__" in window;

/** The platform that the page runs on. */
export const platform: Platform = inApp ? tauri : (await import("./recorded")).recorded;
