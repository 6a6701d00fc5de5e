// Imported before everything else. A system without a language (LANG=C) names one that `Intl` does
// not know, and whatever formats a number while it is being imported would end in a white page.
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  Object.defineProperty(navigator, "language", { value: "en-US" });
  Object.defineProperty(navigator, "languages", { value: ["en-US"] });
}
