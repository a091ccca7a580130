// The page: what is asked of the models, and what is told of them.

import { Column, percent } from "./column.js";
import { Inside } from "./inside.js";
import { Model, without } from "./model.js";

const SPOKEN = 3000; // ms: a screen reader hears the text in pieces, not token by token
const $ = (id) => document.getElementById(id);

const abouts = await (await fetch("/artifacts.json")).json();
const models = abouts.map((about) => new Model(about));
const columns = abouts.map((about, i) => new Column(about, i, { choose: (at) => choose(i, at), look: (at) => look(i, at) }));
const two = abouts.length === 2;
let running = false;
let stopped = false;
let shared = 0; // so many tokens stand in both texts, each after the same ones

heading();
$("columns").classList.toggle("two", two);
$("columns").append(...columns.map((column) => column.element));
$("views").hidden = $("comparison").hidden = !two;
if (two) $("changed").textContent = "Generate a text to see it.";
temper();
new Inside(abouts, written);
await load();

function heading() {
  const names = abouts.map((about) => about.name);
  $("names").textContent = names[0];
  if (two) $("names").append(Object.assign(document.createElement("small"), { textContent: " beside " }), names[1]);
  if (abouts[0].source.startsWith("demo ")) $("prompt").value = "class Parser:\n    def __init__(self"; // that one knows Python alone
  document.title = `${names.join(" beside ")}, in this browser`;
}

async function load() {
  try {
    const forced = new URLSearchParams(location.search).get("compute"); // "webgpu" or "webassembly"
    const why = forced ? "" : await without();
    const hear = (i) => ({ bytes }) => columns[i].loading(bytes);
    const first = forced || why ? null : models[0];
    columns.forEach((column) => column.loading(0));
    if (first) await first.loadFaster(hear(0)); // what is faster for the first is taken for both: speeds are comparable
    const by = first?.by ?? forced ?? "webassembly";
    await Promise.all(models.map((model, i) => model === first || model.load(by, first ? `as ${abouts[0].name}` : why, hear(i))));
    columns.forEach((column, i) => column.ready(models[i].told));
    $("generate").disabled = false;
    state("Ready");
  } catch (error) {
    state("Not loaded");
    alarm(error);
  }
}

function state(text) {
  $("state").textContent = text;
}

function alarm(error) {
  $("alert").hidden = !error;
  $("alert").textContent = error ? error.message : "";
}

function temper() {
  const greedy = Number($("temperature").value) === 0;
  for (const field of document.querySelectorAll(".drawn")) {
    field.classList.toggle("idle", greedy);
    field.querySelector("input").disabled = greedy;
  }
}

// The text in the field, and what the first model made of it, if it was this one.
function written() {
  const prompt = $("prompt").value;
  return columns[0].prompt.textContent === prompt ? prompt + columns[0].list.textContent : prompt;
}

function request() {
  const seed = $("seed").value.trim();
  const temperature = Number($("temperature").value);
  const topP = temperature > 0 && Number($("top-p").value) < 1 ? Number($("top-p").value) : null;
  return {
    prompt: $("prompt").value,
    count: Number($("count").value),
    sampling: { temperature, topP, seed: seed === "" ? null : seed },
  };
}

async function run() {
  if (running || $("generate").disabled || !$("ask").reportValidity()) return;
  const asked = request();
  if (two && asked.sampling.temperature > 0) asked.sampling.seed ??= String(Math.floor(Math.random() * 2 ** 32)); // both draw alike
  const follows = two && document.querySelector("[name=view]:checked").value === "follow";
  running = true;
  stopped = false;
  shared = 0;
  $("generate").disabled = true;
  $("stop").disabled = false;
  $("jump").hidden = $("legend").hidden = true;
  $("changed").textContent = two ? "…" : "";
  alarm(null);
  columns.forEach((column) => column.clear(asked.prompt));
  try {
    const first = await write(0, asked, follows);
    if (follows && !stopped) await follow(first);
    else if (two && !stopped) await write(1, asked, false);
    if (two) compare(follows);
    state(stopped ? "Stopped" : "Done");
  } catch (error) {
    state("Failed");
    alarm(error);
    columns.forEach((column, i) => column.ready(models[i].told)); // WebGPU may have failed
  }
  running = false;
  $("generate").disabled = false;
  $("stop").disabled = true;
}

async function write(i, asked, keep) {
  const column = columns[i];
  const kept = { ids: [], logits: [] };
  const speaker = speaks(i);
  let prefill;
  state(two ? `${column.about.name} writes` : "Writing");
  const hear = ({ is, ids, seconds, token, logits }) => {
    if (is === "prefilled") {
      kept.ids = ids;
      prefill = seconds;
      return;
    }
    column.push(token);
    if (logits) kept.logits.push(logits);
    speaker.push(token.text);
    if (column.chosen === undefined) column.show(column.tokens.length - 1, facts(i, column.tokens.length - 1));
  };
  const { made, seconds, why, rest } = await models[i].job({ do: "generate", ...asked, keep }, hear);
  column.rest(rest);
  const speed = made > 1 ? `${((made - 1) / seconds).toFixed(1)} tokens/s` : "too few for a speed";
  const read = `text of ${kept.ids.length} tokens read in ${spent(prefill)}, ${(kept.ids.length / prefill).toFixed(1)} tokens/s`;
  const ended = { end: "; it ended the text", stopped: "; stopped", count: "" }[why];
  column.speed.textContent = `${made} tokens, ${speed}; ${read}${ended}`;
  speaker.finish(`${made} tokens, ${speed}${ended}`);
  return kept;
}

const spent = (seconds) => (seconds < 1 ? `${Math.ceil(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);

async function follow({ ids, logits }) {
  const column = columns[1];
  const tokens = columns[0].tokens.map((token) => token.id);
  state(`${column.about.name} reads`);
  const transfer = logits.map((row) => row.buffer);
  const told = await models[1].job({ do: "follow", ids, tokens, logits }, ({ tokens }) => tokens.forEach((t) => column.push(t)), transfer);
  column.rest(told.rest);
  column.speed.textContent = `${ids.length + column.tokens.length} tokens read in ${spent(told.seconds)}`;
}

function compare(follows) {
  const [a, b] = columns.map((column) => column.tokens);
  const both = Math.min(a.length, b.length);
  const differs = (i) => (follows ? b[i].likeliest !== a[i].likeliest : b[i].id !== a[i].id);
  let parts = Array.from({ length: both }, (_, i) => i).findIndex(differs);
  shared = follows ? both : parts < 0 ? both : parts + 1;
  if (both === 0) {
    $("changed").textContent = "Nothing to compare.";
    return;
  }
  if (follows) {
    const kls = b.map((token) => token.kl);
    const same = b.filter((token, i) => token.likeliest === a[i].likeliest).length;
    const most = kls.indexOf(Math.max(...kls));
    const mean = kls.reduce((sum, x) => sum + x, 0) / kls.length;
    say([
      `The same token is likeliest at ${same} of ${both} places. KL divergence from ${abouts[0].name}, mean ${mean.toPrecision(2)} ` +
        `nats a token, most at token ${most + 1} (${kls[most].toPrecision(2)}). `,
      ...(parts < 0 ? ["Taking the likeliest, both write this text."] : parting(parts, a[parts].top[0].label, b[parts].top[0].label)),
    ]);
  } else if (parts >= 0) say(parting(parts, a[parts].label, b[parts].label));
  else say([a.length === b.length ? `The same ${both} tokens in both.` : `The same ${both} tokens, then one text ends.`]);
  $("legend").hidden = !follows;
  columns.forEach((column) => parts >= 0 && column.mark(parts));
  $("jump").hidden = parts < 0;
  $("jump").textContent = `Show token ${parts + 1}`;
  $("jump").onclick = () => {
    choose(0, parts);
    columns[0].list.focus();
  };
  if (columns[0].chosen === undefined) choose(0, Math.max(0, parts));
}

function parting(i, first, second) {
  const quoted = (text) => Object.assign(document.createElement("span"), { className: "quoted", textContent: text });
  return [`Their texts part at token ${i + 1}: `, quoted(first), " against ", quoted(second), "."];
}

function say(parts) {
  $("changed").replaceChildren(...parts);
}

function choose(i, at) {
  columns[i].choose(at);
  if (two && at < shared) columns[1 - i].choose(at);
  look(i, null);
}

// Bars of the token under the pointer, or else of the chosen one; of both models where the same tokens lead to it.
function look(i, at) {
  const shown = at ?? columns[i].chosen ?? null;
  columns[i].show(shown, facts(i, shown));
  if (two && shown !== null && shown < shared) columns[1 - i].show(shown, facts(1 - i, shown));
}

function facts(i, at) {
  if (!two || at === null || at >= shared) return "";
  const [token, other] = [columns[i].tokens[at], columns[1 - i].tokens[at]];
  const there = other.id === token.id ? other.p : other.top.find((row) => row.id === token.id)?.p;
  const compared = there === undefined ? "" : `, ${percent(there)} in ${abouts[1 - i].name}`;
  const kl = (token.kl ?? other.kl) === undefined ? "" : ` KL divergence here ${(token.kl ?? other.kl).toPrecision(2)} nats.`;
  return `${token.label}: ${percent(token.p)}${compared}.${kl}`;
}

// The text for screen readers: the first model's, in pieces.
function speaks(i) {
  let held = "";
  let last = performance.now();
  const out = (text) => {
    $("said").textContent = text;
    held = "";
    last = performance.now();
  };
  return {
    push(text) {
      held += text;
      if (i === 0 && performance.now() - last > SPOKEN) out(held);
    },
    finish(summary) {
      out(`${i === 0 ? held : ""} ${two ? abouts[i].name : ""} ${summary}`);
    },
  };
}

function stop() {
  if (!running) return;
  stopped = true;
  models.forEach((model) => model.stop());
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", stop);
$("temperature").addEventListener("input", temper);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
