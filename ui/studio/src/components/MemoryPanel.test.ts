import { render, screen, waitFor } from "@testing-library/svelte";
import { beforeEach, describe, expect, it } from "vitest";
import { platform } from "../platform";
import { app } from "../state/app.svelte";
import { Draft } from "../state/draft.svelte";
import MemoryPanel from "./MemoryPanel.svelte";

async function panel(): Promise<Draft> {
  const startup = await platform.startup();
  app.startup = startup;
  const draft = new Draft(startup);
  render(MemoryPanel, { draft });
  await draft.replan();
  return draft;
}

const bytesOf = (method: string) => Number(screen.getByTestId(`memory-${method}`).dataset["bytes"]);

describe("the memory panel", () => {
  beforeEach(() => localStorage.clear());

  it("shows the planner's totals for every method", async () => {
    const draft = await panel();
    await waitFor(() => expect(bytesOf("qlora")).toBeGreaterThan(0));
    for (const plan of draft.plan!.methods) expect(bytesOf(plan.method)).toBe(plan.peak_bytes);
  });

  it("follows what is changed", async () => {
    const draft = await panel();
    await waitFor(() => expect(bytesOf("qlora")).toBeGreaterThan(0));
    const before = bytesOf("qlora");
    draft.settings.lora.rank = 64;
    await draft.replan();
    await waitFor(() => expect(bytesOf("qlora")).toBeGreaterThan(before));
  });

  it("offers changes that make a plan fit, and makes them", async () => {
    const draft = await panel();
    draft.chooseModel(app.startup!.catalog.find(({ id }) => id === "llama-2-13b")!);
    draft.settings.method = "full";
    await draft.replan();
    const button = (await screen.findAllByTestId("suggestion"))[0]!;
    expect(button.textContent).toContain("QLoRA");
    button.click();
    expect(draft.settings.method).toBe("qlora");
    await waitFor(() => expect(screen.queryByTestId("suggestions")).toBeNull());
  });

  it("shows why there is no plan", async () => {
    const draft = await panel();
    draft.model = { ...draft.model, id: "nobody-knows", path: null };
    await draft.replan();
    await waitFor(() => expect(screen.getByTestId("error").textContent).toContain("not recorded"));
  });
});
