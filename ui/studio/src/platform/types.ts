// Made from the Rust types by the test `types_are_current` of nibble-studio; do not edit.

export type CommandError = { code: string; message: string; hint: string };
export type Device = { id: string; name: string; total_bytes: number; free_bytes: number; n_threads: number; instructions: string; compute: string };
export type ModelSummary = { family: string; parameters: number; layers: number; hidden: number; vocabulary: number; context: number };
export type ModelChoice = { id: string; name: string; path: string | null; summary: ModelSummary };
export type DatasetChoice = { name: string; description: string; path: string; prompt: string };
export type Theme = "system" | "light" | "dark";
export type Preferences = { theme: Theme; runs_folder: string; models_folder: string };
export type Card = { name: string; bytes: number };
export type Startup = { version: string; devices: Device[]; starter: ModelChoice; catalog: ModelChoice[]; datasets: DatasetChoice[]; preferences: Preferences; defaults: RunSettings; cards: Card[] };
export type Method = "full" | "lora" | "qlora";
export type Schedule = "cosine" | "linear" | "constant";
export type ComputePrecision = "auto" | "bf16" | "f32";
export type WeightPrecision = "auto" | "bf16" | "f32";
export type Paging = "auto" | "on" | "off";
export type TrainOn = "completions" | "everything";
export type Columns = { text?: string | null; prompt?: string | null; completion?: string | null; messages?: string | null };
export type LoraSettings = { rank: number; alpha: number; dropout: number; targets: string[]; rslora: boolean };
export type SampleSettings = { prompts: string[]; every: number; max_tokens: number; temperature: number };
export type RunSettings = { format: number; model: string; data: string; method: Method; steps?: number | null; epochs: number; sequence: number; batch: number; gradient_accumulation: number; packing: boolean; eval_split: number; eval_every: number; save_every: number; keep_checkpoints: number; learning_rate?: number | null; schedule: Schedule; warmup_steps: number; weight_decay: number; clip_norm: number; beta1: number; beta2: number; epsilon: number; seed: number; train_on: TrainOn; recompute: boolean; compute: ComputePrecision; weights: WeightPrecision; threads?: number | null; budget_bytes?: number | null; paged: Paging; columns: Columns; lora: LoraSettings; samples: SampleSettings };
export type PlanRequest = { model: string; settings: RunSettings; budget_bytes: number | null };
export type Category = "weights" | "adapters" | "gradients" | "optimizer" | "activations" | "workspace";
export type Residence = "device" | "host" | "disk";
export type PlannedRegion = { name: string; category: Category; bytes: number; resident: Residence };
export type CategoryBytes = { weights: number; adapters: number; gradients: number; optimizer: number; activations: number; workspace: number };
export type Suggestion = { change: string; peak_bytes: number; settings: SuggestedSettings };
export type SuggestedSettings = { method: Method; batch: number; sequence: number; recompute: boolean; rank: number | null };
export type MethodPlan = { method: Method; peak_bytes: number; categories: CategoryBytes; regions: PlannedRegion[]; fits: boolean; suggestions: Suggestion[] };
export type PlanReport = { model: ModelSummary; budget_bytes: number; methods: MethodPlan[] };
export type InspectRequest = { model: string; settings: RunSettings; limit: number };
export type Format = "text" | "prompt_completion" | "alpaca" | "messages" | "sharegpt";
export type InspectedLine = { line: number; error: string };
export type InspectedSample = { text: string; ids: number[]; trained: boolean[]; pieces: string[] };
export type Inspection = { format: Format; examples: number; tokens: number; trained_tokens: number; cut: number; skipped: number; malformed: InspectedLine[]; samples: InspectedSample[] };
export type Event =
  | { event: "loading"; done_bytes: number; total_bytes: number }
  | { event: "ready"; n_steps: number; step: number; n_examples: number; n_tokens: number; planned_peak_bytes: number }
  | { event: "step"; step: number; loss: number; lr: number; grad_norm: number; tokens: number; tokens_per_s: number; host_bytes: number; device_bytes: number }
  | { event: "checkpoint"; step: number; path: string }
  | { event: "eval"; step: number; loss: number; perplexity: number; trained_tokens: number }
  | { event: "sample"; step: number; prompt: string; text: string }
  | { event: "warning"; message: string }
  | { event: "paused" }
  | { event: "resumed" }
  | { event: "done"; planned_peak_bytes: number; allocated_peak_bytes: number; peak_rss_bytes: number; steps: number; final_loss: number; adapter: string };
export type RunState = "loading" | "training" | "paused" | "saving" | "finished" | "stopped" | "failed" | "interrupted";
export type RunUpdate = { reset: boolean; events: Event[]; state: RunState; error: CommandError | null };
export type Command = "pause" | "resume" | "stop";
export type RunSummary = { path: string; name: string; model_name: string; data_name: string; method: Method; state: RunState; started_ms: number | null; steps: number; n_steps: number; final_loss: number | null; peak_bytes: number | null; planned_bytes: number | null; sparkline: number[]; checkpoints: number[] };
export type RunDetails = { summary: RunSummary; settings: RunSettings; plan: PlanReport };
export type AnswerRequest = { run: string | null; model: string | null; step: number | null; prompt: string; temperature: number; top_p: number; max_tokens: number; seed: number };
export type Side = "base" | "tuned";
export type AnswerPiece = { side: Side; text: string; done: boolean; tokens: number; tokens_per_s: number };
export type ExportFormat = "adapter" | "merged";
export type ExportRequest = { run: string; step: number | null; to: string; format: ExportFormat };
export type ExportReport = { path: string; verified: boolean; max_abs_logit_diff: number; second_max_abs_logit_diff: number | null };
export type CloseChoice = "keep" | "stop" | "cancel";
