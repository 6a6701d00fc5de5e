import "./locale";
import "uplot/dist/uPlot.min.css";
import "./theme/base.css";
import { mount } from "svelte";
import App from "./App.svelte";
import { defineTokens } from "./theme/tokens";

defineTokens();
const target = document.getElementById("app");
if (target) mount(App, { target });
