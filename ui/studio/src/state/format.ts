// Numbers as people read them.

import type { Method } from "../platform/types";

/** The methods as the field writes them. */
export const METHODS: Record<Method, string> = { full: "Full", lora: "LoRA", qlora: "QLoRA" };

/** A change that the planner suggests, as a button says it. */
export function suggestionLabel(change: string): string {
  const named = change.replace(/^method (\w+)/, (_, name: Method) => METHODS[name] ?? name);
  return named.charAt(0).toUpperCase() + named.slice(1);
}

const GIB = 2 ** 30;
const MIB = 2 ** 20;

/** Bytes in GiB or MiB, with three digits. */
export function bytes(n: number): string {
  if (n <= 0) return "0";
  const [value, unit] =
    n >= GIB ? [n / GIB, "GiB"] : n >= MIB ? [n / MIB, "MiB"] : [n / 1024, "KiB"];
  return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${unit}`;
}

/** A count with its thousands apart. */
export function count(n: number): string {
  return Math.round(n).toLocaleString("en-US");
}

/** A model's size as people say it: 135 M, 1.1 B. */
export function parameters(n: number): string {
  const [value, unit] = n >= 1e9 ? [n / 1e9, "B"] : [n / 1e6, "M"];
  return `${value.toFixed(value >= 10 ? 0 : 1)} ${unit}`;
}

/** A loss or a norm. */
export function decimal(n: number | null | undefined, digits = 4): string {
  return n === null || n === undefined || !Number.isFinite(n) ? "–" : n.toFixed(digits);
}

/** A small number such as a learning rate. */
export function scientific(n: number): string {
  return n === 0 ? "0" : n.toExponential(2).replace("e-", "e−");
}

/** A short stretch of time, to two digits. */
export function seconds(n: number): string {
  if (n < 1) return `${Math.max(1, Math.round(n * 1000))} ms`;
  return n < 10 ? `${n.toFixed(1)} s` : duration(n);
}

/** A stretch of time in its two largest units. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A moment, as short as the day allows. */
export function moment(milliseconds: number | null): string {
  if (milliseconds === null) return "–";
  const date = new Date(milliseconds);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? `today ${time}`
    : `${date.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

/** A name in a folder, on the system that the folder is of. */
export function join(folder: string, name: string): string {
  const separator = folder.includes("\\") ? "\\" : "/";
  return folder.endsWith(separator) ? folder + name : folder + separator + name;
}

/** The last part of a path of any system. */
export function baseName(path: string): string {
  return path.split(/[\\/]/).filter(Boolean).at(-1) ?? path;
}
