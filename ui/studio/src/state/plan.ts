// A memory plan as it is drawn and told. Nothing here computes what a run needs: that is the
// planner's answer, and these are its parts by name.

import type { Category, MethodPlan } from "../platform/types";
import { bytes, seconds } from "./format";

/** The categories in the order in which every bar shows them. */
export const CATEGORIES: { name: Category; label: string }[] = [
  { name: "weights", label: "Weights" },
  { name: "adapters", label: "Adapters" },
  { name: "gradients", label: "Gradients" },
  { name: "optimizer", label: "Optimizer" },
  { name: "activations", label: "Activations" },
  { name: "workspace", label: "Workspace" },
];

/** What does not stay on the device, of one category. */
export function pagedBytes({ paging }: MethodPlan, category: Category): number {
  switch (category) {
    case "optimizer":
      return paging?.optimizer_bytes ?? 0;
    case "weights":
      return paging?.weights_bytes ?? 0;
    case "activations":
      return paging?.activations_bytes ?? 0;
    default:
      return 0;
  }
}

/** What does not stay on the device. */
export function outsideBytes(plan: MethodPlan): number {
  return CATEGORIES.reduce((sum, { name }) => sum + pagedBytes(plan, name), 0);
}

/** Everything that a run keeps somewhere. */
export function wholeBytes(plan: MethodPlan): number {
  return plan.peak_bytes + outsideBytes(plan);
}

/** Where it lies what does not stay on the device, as people call it. */
export function pagingPlace({ paging }: MethodPlan): string | null {
  if (paging === null) return null;
  return paging.resident === "disk" ? "to disk" : "to RAM";
}

/** What a step moves, and what that may cost. */
export function pagingWords({ paging }: MethodPlan): string | null {
  if (paging === null) return null;
  const moved = `Each step moves ${bytes(paging.step_bytes)}`;
  return paging.step_seconds === null
    ? `${moved}; how long that takes here is not measured.`
    : `${moved}, which adds at most ${seconds(paging.step_seconds)}.`;
}

/** The places beside the device, with what a run takes of each. */
export function placesWords({ host_bytes, page_file_bytes }: MethodPlan): string {
  const places = [
    ...(host_bytes > 0 ? [`${bytes(host_bytes)} of RAM beside the device`] : []),
    ...(page_file_bytes > 0
      ? [`a page file of ${bytes(page_file_bytes)} in the run's folder`]
      : []),
  ];
  return places.join(" and ");
}

/** What becomes of activations between the forward and the backward pass of a model of `layers`. */
export function activationsWords({ recomputed_layers }: MethodPlan, layers: number): string | null {
  if (recomputed_layers === null) return null;
  if (recomputed_layers === 0) return "kept";
  if (recomputed_layers >= layers) return "computed twice";
  return `kept in ${layers - recomputed_layers} of ${layers} layers`;
}

/** That a plan keeps more in RAM than this machine has free there, where it does. */
export function hostWords({ host_bytes }: MethodPlan, available: number | null): string | null {
  if (available === null || host_bytes <= available) return null;
  return `This machine has ${bytes(available)} of RAM free, which is too little for that.`;
}

/** What a plan takes for speed alone, where that is worth a word. */
export function spareWords({ fits, peak_bytes, smallest_bytes }: MethodPlan): string | null {
  if (!fits || smallest_bytes > 0.9 * peak_bytes) return null;
  return `It would do with ${bytes(smallest_bytes)}; what it takes beyond makes it faster.`;
}

/** Budgets to choose from, each a quarter of an octave above the last, between two sizes. */
export function budgetStops(least: number, most: number): number[] {
  const stops: number[] = [];
  if (!(least > 0)) return stops;
  for (let octave = 2 ** Math.floor(Math.log2(least)); octave < most; octave *= 2) {
    for (const quarter of [1, 1.25, 1.5, 1.75]) {
      const stop = octave * quarter;
      if (stop > least && stop < most) stops.push(stop);
    }
  }
  return stops;
}
