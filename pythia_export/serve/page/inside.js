// What happens inside: the server computes it (serve/inside.py), this shows it. One token, one depth and one head are chosen
// at a time, whichever part they were chosen in.

import { Attention } from "./attention.js";
import { Lens } from "./lens.js";

const HEAD = 120; // ms that a head is chosen before its pattern is asked for: arrow keys pass others on their way

const $ = (id) => document.getElementById(id);

async function answer(address, question, signal) {
  const headers = { "Content-Type": "application/json" };
  const found = await fetch(address, { method: "POST", headers, body: JSON.stringify(question), signal });
  if (!found.ok) throw new Error(await found.text());
  return found.json();
}

export class Inside {
  // `text()` is what is looked into when a person asks.
  constructor(abouts, text) {
    this.abouts = abouts;
    const choose = (changed) => this.#choose(changed);
    this.chosen = {};
    this.lens = new Lens(abouts, choose);
    this.attention = new Attention(abouts, choose);
    if (abouts.length === 2) this.#sides();
    $("look").addEventListener("click", () => this.#look(text()));
  }

  // Which of two is shown: 0 or 1, or both, "difference".
  get side() {
    return this.abouts.length === 1 ? 0 : Number(document.querySelector("[name=side]:checked").value);
  }

  #sides() {
    document.querySelectorAll("#sides [data-name]").forEach((label) => (label.textContent = this.abouts[label.dataset.name].name));
    $("sides").addEventListener("change", () => this.#show());
  }

  async #look(text) {
    $("look").disabled = true;
    $("looked").textContent = "Looking …";
    $("trouble").hidden = true;
    try {
      const { Words } = await import("./text.js");
      this.words ??= new Words(await (await fetch(`${this.abouts[0].at}/tokenizer.json`)).json());
      const seen = await answer("/inside/look", { text });
      this.text = text;
      this.seen = seen;
      this.#arrive();
    } catch (error) {
      $("looked").textContent = "";
      $("trouble").hidden = false;
      $("trouble").textContent = error.message;
    }
    $("look").disabled = false;
  }

  #arrive() {
    const { tokens, total, seconds, difference } = this.seen;
    const cut = total > tokens.length ? `The text has ${total} tokens; the first ${tokens.length} are shown. ` : "";
    $("looked").textContent = `${cut}${tokens.length} tokens, ${seconds.toFixed(1)} s.`;
    $("within").hidden = false;
    $("sides").hidden = this.abouts.length === 1;
    const both = document.querySelector("[name=side][value='2']");
    both.disabled = !difference;
    if (!difference && both.checked) document.querySelector("[name=side][value='0']").checked = true;
    const stream = this.words.stream();
    const texts = tokens.map((token) => stream.push(token));
    texts[texts.length - 1] += stream.finish();
    this.named = { label: (token) => this.words.label(token), texts, labels: tokens.map((token) => this.words.label(token)) };
    this.pattern = null;
    this.attention.pattern(null); // of another text
    const last = tokens.length - 1;
    this.chosen = { ...this.chosen, token: last, key: last, depth: this.seen.seen[0].top.length - 1 };
    if (this.chosen.layer === undefined) Object.assign(this.chosen, this.attention.strongest(this.#view()));
    this.#show();
  }

  #view() {
    const shown = this.side === 2 ? [0, 1] : [this.side];
    return { shown, seen: this.seen.seen, tokens: this.seen.tokens, difference: this.seen.difference, ...this.named };
  }

  #show() {
    const view = this.#view();
    const { shown } = view;
    const layers = this.abouts[shown[0]].layers;
    this.chosen.depth = Math.min(this.chosen.depth, layers);
    this.chosen.layer = Math.min(this.chosen.layer, layers - 1);
    this.chosen.head = Math.min(this.chosen.head, this.abouts[shown[0]].heads - 1);
    this.lens.show(view);
    this.attention.show(view);
    this.#choose({});
  }

  // Take what was chosen over into every part.
  #choose(changed) {
    Object.assign(this.chosen, changed);
    if (changed.token !== undefined && changed.key === undefined) this.chosen.key = Math.min(this.chosen.key, changed.token);
    this.lens.choose(this.chosen);
    this.attention.choose(this.chosen);
    const { layer, head } = this.chosen;
    if (this.pattern?.layer !== layer || this.pattern?.head !== head) this.#ask(layer, head);
  }

  async #ask(layer, head) {
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const first = !this.pattern;
    this.pattern = { layer, head };
    try {
      if (!first) await new Promise((go) => setTimeout(go, HEAD));
      if (signal.aborted) return;
      const { rows } = await answer("/inside/pattern", { text: this.text, layer, head }, signal);
      this.attention.pattern(rows);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.pattern = null;
      $("trouble").hidden = false;
      $("trouble").textContent = error.message;
    }
  }
}
