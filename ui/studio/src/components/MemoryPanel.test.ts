import { render, screen, waitFor } from "@testing-library/svelte";
import { beforeEach, describe, expect, it, vi } from "vitest";
import { platform } from "../platform";
import { app } from "../state/app.svelte";
import { bytes } from "../state/format";
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
    expect(button.textContent).toContain("LoRA with rank 16");
    button.click();
    expect(draft.settings.method).toBe("lora");
    await waitFor(() => expect(screen.queryByTestId("suggestions")).toBeNull());
  });

  it("shows what is paged within a budget, and where it lies", async () => {
    const draft = await panel();
    draft.settings.method = "full";
    draft.settings.budget_bytes = 48 * 2 ** 20;
    await draft.replan();
    const hatched = await screen.findByTestId("paged-full-optimizer");
    expect(hatched.className).toContain("hatched");
    const plan = draft.plan!.methods.find(({ method }) => method === "full")!;
    expect(plan.fits).toBe(true);
    expect(plan.paging!.optimizer_bytes).toBeGreaterThan(0);
    expect(screen.getByTestId("memory-full-outside").textContent).toContain(
      bytes(plan.paging!.optimizer_bytes),
    );
    const words = screen.getByTestId("paging-words").textContent;
    expect(words).toContain(`Each step moves ${bytes(plan.paging!.step_bytes)}`);
    expect(words).toContain(`page file of ${bytes(plan.page_file_bytes)}`);
    // What fits as it is stays where it is.
    expect(screen.queryByTestId("memory-qlora-outside")).toBeNull();
  });

  it("has a budget that goes back to all that is free", async () => {
    const draft = await panel();
    await draft.replan();
    const thumb = screen.getByTestId("budget-thumb");
    expect(thumb.getAttribute("aria-valuetext")).toContain("all that is free");
    thumb.focus();
    thumb.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
    await waitFor(() => expect(draft.settings.budget_bytes).toBeLessThan(draft.hereBytes));
    await waitFor(() =>
      expect(screen.getByTestId("budget-value").textContent).toBe(
        bytes(draft.settings.budget_bytes!),
      ),
    );
    thumb.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    await waitFor(() => expect(draft.settings.budget_bytes).toBe(null));
  });

  it("reaches the smallest budget that does with one click", async () => {
    const draft = await panel();
    draft.settings.budget_bytes = 20 * 2 ** 20;
    await draft.replan();
    const button = await screen.findByTestId("smallest-budget");
    const { smallest_bytes } = draft.plan!.methods.find(({ method }) => method === draft.method)!;
    expect(button.textContent).toContain(bytes(smallest_bytes));
    button.click();
    expect(draft.settings.budget_bytes).toBe(smallest_bytes);
  });

  it("offers no budget where this machine has less than the smallest", async () => {
    const draft = await panel();
    draft.chooseModel(app.startup!.catalog.find(({ id }) => id === "llama-2-13b")!);
    draft.settings.method = "full";
    await draft.replan();
    await screen.findByTestId("suggestions");
    expect(draft.plan!.methods[0]!.smallest_bytes).toBeGreaterThan(draft.hereBytes);
    expect(screen.queryByTestId("smallest-budget")).toBeNull();
  });

  it("plans for a card as a card lays memory out, and for this machine as it is", async () => {
    const draft = await panel();
    const { hereBytes } = draft;
    const asked = vi.spyOn(platform, "plan");
    draft.budgetBytes = 12 * 2 ** 30;
    draft.settings.budget_bytes = 2 ** 30;
    await draft.replan();
    const { device, budget_bytes } = asked.mock.lastCall![0].settings;
    expect([device, budget_bytes]).toEqual(["cuda", null]);
    expect([draft.settings.device, draft.hereBytes]).toEqual(["cpu", hereBytes]);
    draft.budgetBytes = null;
    await draft.replan();
    expect(asked.mock.lastCall![0].settings).toMatchObject({
      device: "cpu",
      budget_bytes: 2 ** 30,
    });
    asked.mockRestore();
  });

  it("names what is free by where it is", async () => {
    const draft = await panel();
    await draft.replan();
    const text = () => screen.getByTestId("memory-panel").textContent;
    await waitFor(() => expect(text()).toContain("Free on this machine"));
    draft.settings.device = "cuda";
    await waitFor(() => expect(text()).toContain("Free on this card"));
    expect(screen.getByTestId("card").textContent).toContain("This card");
  });

  it("shows why there is no plan", async () => {
    const draft = await panel();
    draft.model = { ...draft.model, id: "nobody-knows", path: null };
    await draft.replan();
    await waitFor(() => expect(screen.getByTestId("error").textContent).toContain("not recorded"));
  });
});
