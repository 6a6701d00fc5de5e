// Made from the Rust types by the test `types_are_current` of nibble-studio; do not edit.
// After a change of those: NIBBLE_WRITE_TYPES=1 cargo test -p nibble-studio types_are_current

export type CommandError = { 
  /** Which error, in a form that does not change with the wording. */
  code: string, 
  /** What happened, and where. */
  message: string, 
  /** What to do; may be empty. */
  hint: string,
};

export type Startup = { 
  /** This app's version. */
  version: string, 
  /** What this machine can train on. */
  devices: Array<Device>, 
  /** Whether there is a graphics card among them, or why not. */
  cuda: CudaStatus, 
  /** The built-in model. */
  starter: ModelChoice, 
  /** Well-known models. */
  catalog: Array<ModelChoice>, 
  /** The built-in datasets. */
  datasets: Array<DatasetChoice>, 
  /** What the person set. */
  preferences: Preferences, 
  /** What a new run begins with. */
  defaults: RunSettings, 
  /** Sizes of graphics cards. */
  cards: Array<Card>,
};

export type Device = { 
  /** Its name on the command line and in settings. */
  id: TrainingDevice, 
  /** The processor's or card's name. */
  name: string, 
  /** All its memory. */
  total_bytes: number, 
  /** What other programs leave. */
  free_bytes: number, 
  /** Threads that compute; beside a card: that prepare its work. */
  n_threads: number, 
  /** The instructions its fastest path uses. */
  instructions: string, 
  /** The precision of its matrix products unless another is asked for. */
  compute: string, 
  /** A card's compute capability, such as 8.6. */
  capability?: string | null, 
  /** Its temperature, of a card that tells. */
  temperature_celsius?: number | null, 
  /** The power that it draws, of a card that tells. */
  power_watts?: number | null,
};

export type CudaStatus = { 
  /** Whether one can. */
  available: boolean, 
  /** Why none can, and what to do. */
  reason?: string | null,
};

export type ModelChoice = { 
  /** What plans and runs call it: its folder, or its id in the catalog. */
  id: string, 
  /** What it is called in a window. */
  name: string, 
  /** Its folder; `None` when it is not on this machine. */
  path: string | null, 
  /** Where it is published on the Hugging Face hub, of a model of the catalog. */
  repository: string | null, 
  /** Its shape in numbers people know. */
  summary: ModelSummary,
};

export type ModelSummary = { 
  /** Family name, such as `llama`. */
  family: string, 
  /** Parameters. */
  parameters: number, 
  /** Decoder layers. */
  layers: number, 
  /** Hidden width. */
  hidden: number, 
  /** Tokens it knows. */
  vocabulary: number, 
  /** The most tokens it reads. */
  context: number,
};

export type DatasetChoice = { 
  /** What it is called. */
  name: string, 
  /** What it teaches. */
  description: string, 
  /** Its file. */
  path: string, 
  /** A prompt that shows what was learned. */
  prompt: string,
};

export type Preferences = { 
  /** Light or dark. */
  theme: Theme, 
  /** Where runs are made. */
  runs_folder: string, 
  /** Where models are looked for. */
  models_folder: string, 
  /** What computes, by its name in the list of devices. A name, so that a file of a Nibble that
 * knows more devices is still read; one that is not there is as good as none. */
  device: string,
};

export type Theme = "system" | "light" | "dark";

export type Card = { 
  /** As people call it. */
  name: string, 
  /** Its memory. */
  bytes: number,
};

export type RunSettings = { 
  /** Format of this file. */
  format: number, 
  /** Folder of the model. */
  model: string, 
  /** File of the dataset. */
  data: string, 
  /** What is trained. */
  method: Method, 
  /** Optimizer steps; `None`: as `epochs` says. */
  steps?: number | null, 
  /** Passes over the dataset, when `steps` is not set. */
  epochs: number, 
  /** The longest example, in tokens; longer ones are cut. */
  sequence: number, 
  /** Rows of `sequence` tokens in a micro-batch. */
  batch: number, 
  /** Micro-batches in an optimizer step. */
  gradient_accumulation: number, 
  /** Whether short examples share a row. */
  packing: boolean, 
  /** Share of the examples held out for evaluation. */
  eval_split: number, 
  /** Steps between evaluations; 0: only at the end. */
  eval_every: number, 
  /** Steps between checkpoints; 0: only at the end. */
  save_every: number, 
  /** Checkpoints kept; older ones are deleted. 0: all. */
  keep_checkpoints: number, 
  /** The highest learning rate; `None`: as the method's authors train. */
  learning_rate?: number | null, 
  /** How the learning rate falls. */
  schedule: Schedule, 
  /** Steps over which it rises. */
  warmup_steps: number, 
  /** Decoupled weight decay; norms and biases are spared. */
  weight_decay: number, 
  /** The largest gradient norm; 0: any. */
  clip_norm: number, 
  /** How the optimizer keeps its states. */
  optimizer: Optimizer, 
  /** Decay of the first moment. */
  beta1: number, 
  /** Decay of the second moment. */
  beta2: number, 
  /** Added to the root of the second moment. */
  epsilon: number, 
  /** Decides shuffling, initial adapters and dropout. */
  seed: number, 
  /** Which tokens the loss counts. */
  train_on: TrainOn, 
  /** Whether activations are computed again in the backward pass instead of kept. */
  recompute: Recompute, 
  /** What computes. */
  device: TrainingDevice, 
  /** Precision of products. */
  compute: ComputePrecision, 
  /** Precision of weights that are not quantised. */
  weights: WeightPrecision, 
  /** Worker threads; `None`: one a core. */
  threads?: number | null, 
  /** The most memory to use, in bytes; `None`: what other programs leave. */
  budget_bytes?: number | null, 
  /** Whether regions may live outside the device. */
  paged: Paging, 
  /** Columns of the dataset. */
  columns: Columns, 
  /** The adapter. */
  lora: LoraSettings, 
  /** Samples. */
  samples: SampleSettings,
};

export type Method = "full" | "lora" | "qlora";

export type TrainingDevice = "cpu" | "cuda";

export type Schedule = "cosine" | "linear" | "constant";

export type ComputePrecision = "auto" | "bf16" | "f32";

export type WeightPrecision = "auto" | "bf16" | "f32";

export type Paging = "auto" | "on" | "off";

export type Recompute = "auto" | "on" | "off";

export type Optimizer = "adamw" | "adamw-8bit";

export type TrainOn = "completions" | "everything";

export type Columns = { 
  /** Column of whole texts. */
  text?: string | null, 
  /** Column of prompts. */
  prompt?: string | null, 
  /** Column of completions. */
  completion?: string | null, 
  /** Column of conversations. */
  messages?: string | null,
};

export type LoraSettings = { 
  /** R, rows of A and columns of B. */
  rank: number, 
  /** Numerator of the factor alpha / R on every pair. */
  alpha: number, 
  /** Share of the pairs' inputs dropped in training. */
  dropout: number, 
  /** Linear layers with a pair: `all-linear`, or names such as `q_proj`. */
  targets: Array<string>, 
  /** Whether the factor is alpha / √R, which keeps large ranks stable. */
  rslora: boolean,
};

export type SampleSettings = { 
  /** What is asked, before the first step, every so often and at the end. */
  prompts: Array<string>, 
  /** Steps between samples; 0: only before and after. */
  every: number, 
  /** The most tokens of an answer. */
  max_tokens: number, 
  /** 0: always the likeliest token. */
  temperature: number,
};

export type PlanRequest = { 
  /** A model's folder, or an id of the catalog. */
  model: string, 
  /** The settings of the run. */
  settings: RunSettings, 
  /** Memory to hold the plans against; `None`: what other programs leave. */
  budget_bytes: number | null,
};

export type PlanReport = { 
  /** The model. */
  model: ModelSummary, 
  /** The device that the plans are for. */
  device: TrainingDevice, 
  /** What the plans were held against. */
  budget_bytes: number, 
  /** What other programs left of the device's memory meanwhile, without `device_overhead_bytes`. */
  available_bytes: number, 
  /** What a card's driver takes of its memory beside every plan, for its own state and the kernels'
 * code, as it was on this card before; `None`: not known before its first use, or no card. */
  device_overhead_bytes: number | null, 
  /** What other programs left of the host's memory, where a card's plan keeps what leaves the card;
 * `None`: of no card. */
  host_available_bytes: number | null, 
  /** A plan for each method. */
  methods: Array<MethodPlan>,
};

export type MethodPlan = { 
  /** The method. */
  method: Method, 
  /** Every byte that the run will hold on the device. */
  peak_bytes: number, 
  /** Every byte that it will hold in the host's memory beside that. */
  host_bytes: number, 
  /** The size of its page file. */
  page_file_bytes: number, 
  /** Layers whose activations are computed again in the backward pass, instead of kept; `None` in
 * plans of before this was told. */
  recomputed_layers: number | null, 
  /** What does not stay on the device; `None`: everything does. */
  paging: PagingPlan | null, 
  /** The smallest budget that a run with these settings fits. */
  smallest_bytes: number, 
  /** The same by category. */
  categories: CategoryBytes, 
  /** Every region. */
  regions: Array<PlannedRegion>, 
  /** Whether it fits the budget. */
  fits: boolean, 
  /** Changes that would make it fit, when it does not. */
  suggestions: Array<Suggestion>,
};

export type PagingPlan = { 
  /** Where it lies. */
  resident: Residence, 
  /** States of the optimizer. */
  optimizer_bytes: number, 
  /** Weights. */
  weights_bytes: number, 
  /** Checkpointed inputs of layers. */
  activations_bytes: number, 
  /** Bytes that cross in each step, in both directions. */
  step_bytes: number, 
  /** How long they take, which is what a step grows by where nothing hides it; `None` before the
 * rate was measured. */
  step_seconds: number | null,
};

export type CategoryBytes = { 
  /** Base weights. */
  weights: number, 
  /** Parameters of adapters. */
  adapters: number, 
  /** Gradients. */
  gradients: number, 
  /** Moments. */
  optimizer: number, 
  /** Activations; regions that take turns in one place count once. */
  activations: number, 
  /** Everything else. */
  workspace: number,
};

export type Category = "weights" | "adapters" | "gradients" | "optimizer" | "activations" | "workspace";

export type PlannedRegion = { 
  /** What it holds. */
  name: string, 
  /** What it is for. */
  category: Category, 
  /** Size. */
  bytes: number, 
  /** Where it lives. */
  resident: Residence,
};

export type Residence = "device" | "host" | "disk";

export type Suggestion = { 
  /** What to change. */
  change: string, 
  /** The peak with it. */
  peak_bytes: number, 
  /** The settings that decide memory, with the change made. */
  settings: SuggestedSettings,
};

export type SuggestedSettings = { 
  /** What is trained. */
  method: Method, 
  /** Rows of a micro-batch. */
  batch: number, 
  /** The longest example, in tokens. */
  sequence: number, 
  /** Whether activations are computed again in the backward pass. */
  recompute: Recompute, 
  /** Rank of the adapter; `None`: trained in full. */
  rank: number | null, 
  /** Whether regions may live outside the device. */
  paged: Paging,
};

export type InspectRequest = { 
  /** The model's folder, for its tokenizer and chat template. */
  model: string, 
  /** The dataset, its columns, and the longest example. */
  settings: RunSettings, 
  /** Examples to show. */
  limit: number,
};

export type Inspection = { 
  /** What the examples look like. */
  format: Format, 
  /** Examples that are trained on. */
  examples: number, 
  /** Their tokens. */
  tokens: number, 
  /** Tokens that the loss counts. */
  trained_tokens: number, 
  /** Examples that were cut. */
  cut: number, 
  /** Examples of which nothing to train on is left. */
  skipped: number, 
  /** Lines that cannot be read, or that the chat template refuses. */
  n_malformed: number, 
  /** The first of them. */
  malformed: Array<InspectedLine>, 
  /** The first examples. */
  samples: Array<InspectedSample>,
};

export type InspectedSample = { 
  /** The rendered text. */
  text: string, 
  /** Its tokens, up to the cut. */
  ids: Array<number>, 
  /** Whether the loss counts each. */
  trained: Array<boolean>, 
  /** The text of each token. */
  pieces: Array<string>,
};

export type InspectedLine = { 
  /** Its line in the file, from 1; in a JSON array, its number. */
  line: number, 
  /** What is wrong. */
  error: string,
};

export type Format = "text" | "prompt-completion" | "alpaca" | "messages" | "sharegpt";

export type Event = { "event": "loading", 
  /** Bytes of the model read so far. */
  done_bytes: number, 
  /** Bytes to read. */
  total_bytes: number, } | { "event": "ready", 
  /** Steps of the whole run. */
  n_steps: number, 
  /** Steps done before (of a resumed run). */
  step: number, 
  /** Examples to train on. */
  n_examples: number, 
  /** Their tokens. */
  n_tokens: number, 
  /** The plan's peak. */
  planned_peak_bytes: number, } | { "event": "step", 
  /** Steps done. */
  step: number, 
  /** Loss before the update. */
  loss: number, 
  /** Learning rate. */
  lr: number, 
  /** Gradient norm before clipping. */
  grad_norm: number, 
  /** Tokens seen in this step. */
  tokens: number, 
  /** Tokens a second of this step. */
  tokens_per_s: number, 
  /** Resident memory of the process. */
  host_bytes: number, 
  /** Memory taken from the device. */
  device_bytes: number, 
  /** Bytes that crossed between the device and what lies outside it, in both directions. */
  paged_bytes: number, 
  /** What the card says, where one computes. */
  card?: CardReadings | null, } | { "event": "checkpoint", 
  /** Steps done. */
  step: number, 
  /** Its folder. */
  path: string, } | { "event": "eval", 
  /** Steps done. */
  step: number, 
  /** Loss. */
  loss: number, 
  /** `exp(loss)`. */
  perplexity: number, 
  /** Tokens it is the mean of. */
  trained_tokens: number, } | { "event": "sample", 
  /** Steps done. */
  step: number, 
  /** What was asked. */
  prompt: string, 
  /** What the model answered. */
  text: string, } | { "event": "warning", 
  /** What, and what to do. */
  message: string, } | { "event": "paused" } | { "event": "resumed" } | { "event": "profile", 
  /** Steps that were watched: all but the first, which meets its memory for the first time. */
  steps: number, 
  /** Their time. */
  seconds: number, 
  /** Every operation, in the order of their first calls. */
  operations: Array<OperationTime>, 
  /** Multiplications and additions a second that the device does on registers alone; `None`
 * where that was not measured. */
  product_flops_per_s: number | null, 
  /** Bytes a second that a copy reads and writes. */
  copy_bytes_per_s: number | null, } | { "event": "failed", 
  /** Which error, in a form that does not change. */
  code: string, 
  /** What happened, and where. */
  message: string, 
  /** What to do; may be empty. */
  hint: string, } | { "event": "done", 
  /** The plan's peak. */
  planned_peak_bytes: number, 
  /** What was taken from the device. */
  allocated_peak_bytes: number, 
  /** What the plan keeps in the host's memory beside the device. */
  planned_host_bytes: number, 
  /** What it keeps in a page file. */
  planned_page_file_bytes: number, 
  /** What was taken outside the device: the host's memory and page file together. */
  allocated_outside_bytes: number, 
  /** The most memory the process held. */
  peak_rss_bytes: number, 
  /** Steps done. */
  steps: number, 
  /** The last step's loss. */
  final_loss: number, 
  /** The last checkpoint, whose folder other programs can load. */
  adapter: string,
};

export type CardReadings = { 
  /** Memory that is in use on it, by all programs. */
  used_bytes: number | null, 
  /** This process's part of it, the driver's own included. */
  process_bytes: number | null, 
  /** Its temperature. */
  temperature_celsius: number | null, 
  /** The power that it draws. */
  power_watts: number | null,
};

export type OperationTime = { 
  /** The operation. */
  name: string, 
  /** How often it ran. */
  calls: number, 
  /** The time from its beginnings to its ends, in seconds. */
  seconds: number, 
  /** Multiplications and additions of its matrix products; 0 where it has none. */
  flops: number, 
  /** Bytes of its arguments, each counted once a call. */
  bytes: number,
};

export type RunState = "loading" | "training" | "paused" | "saving" | "finished" | "stopped" | "failed" | "interrupted";

export type RunUpdate = { 
  /** Whether the events begin again with the first. */
  reset: boolean, 
  /** New events. */
  events: Array<Event>, 
  /** What the run is doing. */
  state: RunState, 
  /** What ended it, when it failed. */
  error: CommandError | null,
};

export type Command = "pause" | "resume" | "stop";

export type RunSummary = { 
  /** Its folder. */
  path: string, 
  /** The folder's name. */
  name: string, 
  /** The name of the model's folder. */
  model_name: string, 
  /** The name of the dataset, without its ending. */
  data_name: string, 
  /** What is trained. */
  method: Method, 
  /** What it is doing, or how it ended. */
  state: RunState, 
  /** When it was made, in milliseconds since 1970; `None` where the system does not tell. */
  started_ms: number | null, 
  /** Steps done. */
  steps: number, 
  /** Steps of the whole run, as far as is known. */
  n_steps: number, 
  /** The last step's loss. */
  final_loss: number | null, 
  /** The most memory that the process held. */
  peak_bytes: number | null, 
  /** The peak that was planned. */
  planned_bytes: number | null, 
  /** The course of the loss in at most 60 numbers, each the mean of as many steps. */
  sparkline: Array<number>, 
  /** Steps of the whole checkpoints, the earliest first. */
  checkpoints: Array<number>,
};

export type RunDetails = { 
  /** The run in one line. */
  summary: RunSummary, 
  /** Every setting. */
  settings: RunSettings, 
  /** The memory plan it runs under. */
  plan: PlanReport,
};

export type AnswerRequest = { 
  /** The run whose base and result answer. */
  run: string | null, 
  /** The model that answers alone, where there is no run. */
  model: string | null, 
  /** The checkpoint; `None`: the last. */
  step: number | null, 
  /** What is asked. */
  prompt: string, 
  /** 0: always the likeliest token. */
  temperature: number, 
  /** Keeps the fewest tokens whose probabilities sum to this. */
  top_p: number, 
  /** The most tokens of an answer. */
  max_tokens: number, 
  /** Seeds the choice of tokens. */
  seed: number,
};

export type AnswerPiece = { 
  /** Who answers. */
  side: Side, 
  /** What follows the pieces before. */
  text: string, 
  /** Whether the answer is whole. */
  done: boolean, 
  /** Tokens so far. */
  tokens: number, 
  /** Tokens a second so far. */
  tokens_per_s: number,
};

export type Side = "base" | "tuned";

export type ExportRequest = { 
  /** The run folder. */
  run: string, 
  /** The checkpoint; `None`: the last. */
  step: number | null, 
  /** The folder to write. */
  to: string, 
  /** What to write. */
  format: ExportFormat,
};

export type ExportFormat = "adapter" | "merged";

export type ExportProgress = { 
  /** What is being done. */
  stage: ExportStage, 
  /** The share of the stage's values that are done, from 0 to 1; `None` where that is not known. */
  share: number | null,
};

export type ExportStage = "opening" | "writing" | "checking";

export type ExportReport = { 
  /** The folder. */
  path: string, 
  /** Whether it was read back and gave the run's logits. */
  verified: boolean, 
  /** The largest difference to the run's logits, over every token of the probe. */
  max_abs_logit_diff: number, 
  /** The same of the second implementation, where it knows the model and the memory suffices. */
  second_max_abs_logit_diff: number | null,
};

export type CloseChoice = "keep" | "stop" | "cancel";

export type Dropped = { 
  /** What it is taken for. */
  kind: DroppedKind, 
  /** The file or folder. */
  path: string,
};

export type DroppedKind = "run" | "model" | "data";
