import { render, screen, waitFor } from "@testing-library/svelte";
import { expect, it, vi } from "vitest";
import { platform } from "../platform";
import { Watch } from "../state/watch.svelte";
import Run from "./Run.svelte";

// Drawn on a canvas, which is not here.
vi.mock("../charts/LineChart.svelte", () => ({ default: () => {} }));

it.each([
  ["card_unavailable", "The NVIDIA driver shows no card."],
  ["card_failed", "The graphics card failed, and there is no card."],
  ["card_memory", "Too little is free, as if there were no card."],
])("offers the processor to a run without its card: %s", async (code, message) => {
  const { defaults } = await platform.startup();
  const run = await platform.startRun(defaults, null);
  const watch = new Watch(run, () => {});
  render(Run, { watch });
  await platform.controlRun(run, "stop");
  const resumed = vi.spyOn(platform, "resumeRun").mockRejectedValueOnce({
    code,
    message,
    hint: "",
  });
  (await screen.findByTestId("resume")).click();
  const elsewhere = await screen.findByTestId("resume-here");
  expect(screen.getByTestId("error").textContent).toContain("no card");
  resumed.mockResolvedValueOnce();
  elsewhere.click();
  await waitFor(() => expect(screen.queryByTestId("error")).toBeNull());
  expect(resumed.mock.calls).toEqual([
    [run, null],
    [run, "cpu"],
  ]);
  resumed.mockRestore();
  watch.end();
});
