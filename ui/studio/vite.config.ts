import { svelte } from "@sveltejs/vite-plugin-svelte";
import { svelteTesting } from "@testing-library/svelte/vite";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [svelte(), svelteTesting()],
  // The design tokens lie above the page, where the monitor reads them too.
  server: { port: 5173, strictPort: true, fs: { allow: ["../.."] } },
  // The page only ever runs in the web view that the app ships with or requires.
  build: { target: "es2022", chunkSizeWarningLimit: 1024 },
  test: { environment: "jsdom", include: ["src/**/*.test.ts"], setupFiles: ["src/testing.ts"] },
});
