// The design tokens of `assets/tokens.json`, as CSS variables and for charts. The monitor reads the
// same file; no colour is written anywhere else.

import tokens from "../../../../assets/tokens.json";
import type { Theme } from "../platform/types";

export type ColorName = keyof typeof tokens.colors.light;
export type Scheme = keyof typeof tokens.colors;

/** Writes every token as a CSS variable: `--weights`, `--space-2`, `--type-body`. */
export function defineTokens(): void {
  const colors = (scheme: Scheme) =>
    Object.entries(tokens.colors[scheme])
      .map(([name, value]) => `--${name.replaceAll("_", "-")}: ${value};`)
      .join(" ");
  const sizes = [
    ...tokens.spacing_px.map((pixels, i) => `--space-${i + 1}: ${pixels}px;`),
    ...Object.entries(tokens.type_px).map(([name, pixels]) => `--type-${name}: ${pixels}px;`),
  ].join(" ");
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(
    `:root { ${sizes} color-scheme: light; ${colors("light")} }
     :root[data-scheme="dark"] { color-scheme: dark; ${colors("dark")} }`,
  );
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}

const prefersDark = () => window.matchMedia("(prefers-color-scheme: dark)");

/** Light or dark, as the person or the system wants it. */
export function schemeOf(theme: Theme): Scheme {
  if (theme !== "system") return theme;
  return prefersDark().matches ? "dark" : "light";
}

/** Shows the page in `theme`, and keeps following the system. Returns how to stop. */
export function applyTheme(theme: Theme, onChange: (scheme: Scheme) => void): () => void {
  const apply = () => {
    const scheme = schemeOf(theme);
    document.documentElement.dataset["scheme"] = scheme;
    onChange(scheme);
  };
  apply();
  const query = prefersDark();
  query.addEventListener("change", apply);
  return () => query.removeEventListener("change", apply);
}

/** A colour for a canvas, which knows no CSS variables. */
export function color(scheme: Scheme, name: ColorName): string {
  return tokens.colors[scheme][name];
}
