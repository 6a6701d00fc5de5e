import { describe, expect, it } from "vitest";
import {
  baseName,
  bytes,
  decimal,
  duration,
  join,
  parameters,
  scientific,
  suggestionLabel,
} from "./format";

describe("numbers", () => {
  it.each([
    [0, "0"],
    [1536, "1.50 KiB"],
    [123_456_789, "118 MiB"],
    [5_368_709_120, "5.00 GiB"],
    [208e9, "194 GiB"],
  ])("%d bytes are %s", (n, text) => expect(bytes(n)).toBe(text));

  it.each([
    [5, "5 s"],
    [65, "1 min 05 s"],
    [3725, "1 h 02 min"],
    [400_000, "4 d 15 h"],
    [NaN, "–"],
  ])("%d seconds are %s", (n, text) => expect(duration(n)).toBe(text));

  it("are short and never wrong", () => {
    expect(parameters(2_938_944)).toBe("2.9 M");
    expect(parameters(13_015_864_320)).toBe("13 B");
    expect(decimal(null)).toBe("–");
    expect(decimal(Infinity)).toBe("–");
    expect(scientific(2e-4)).toBe("2.00e−4");
  });

  it("paths of every system end in a name", () => {
    expect(suggestionLabel("method qlora, batch 1")).toBe("QLoRA, batch 1");
    expect(suggestionLabel("batch 2")).toBe("Batch 2");
    expect(join("/home/you", "new")).toBe("/home/you/new");
    expect(join("C:\\", "new")).toBe("C:\\new");
    expect(baseName("/home/you/data.jsonl")).toBe("data.jsonl");
    expect(baseName("C:\\models\\llama\\")).toBe("llama");
  });
});
