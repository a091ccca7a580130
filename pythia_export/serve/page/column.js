// One model on the page: its text, token by token, and what else a token might have been.

const FAR = [0.02, 0.1, 0.5]; // nats of KL divergence from which a token is tinted, as the legend says

export const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function made(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export class Column {
  // `choose(i)` is called when a person goes to token i, `look(i)` when the pointer does, null when it leaves.
  constructor(about, index, { choose, look }) {
    const part = document.getElementById("column").content.cloneNode(true).firstElementChild;
    const find = (name) => part.querySelector(`.${name}`);
    this.index = index;
    this.about = about;
    this.element = part;
    this.tokens = [];
    [this.prompt, this.list, this.speed, this.where, this.bars, this.facts, this.waiting] = [
      "prompt", "tokens", "speed", "where", "bars", "facts", "loading",
    ].map(find);
    find("name").textContent = about.name;
    find("about").textContent = [
      about.source, about.treatment, `${about.bits_per_weight.toFixed(2)} bits a weight`, megabytes(about.weights.bytes),
      ...(about.unpacked ? [] : ["computed as stored, which browsers are slow at: too large to unpack"]),
      { true: "passed its gates", false: "did not pass its gates", null: "never verified" }[about.passed],
    ].join(" · ");
    this.list.setAttribute("aria-label", `Tokens of ${about.name}`);
    find("next").setAttribute("role", "region");
    find("next").setAttribute("aria-label", `Next-token probabilities of ${about.name}`);

    const at = (event) => {
      const token = event.target.closest(".token");
      return token ? Number(token.dataset.at) : null;
    };
    this.list.addEventListener("click", (event) => at(event) !== null && choose(at(event)));
    this.list.addEventListener("pointerover", (event) => event.pointerType === "mouse" && look(at(event)));
    this.list.addEventListener("pointerleave", () => look(null));
    this.list.addEventListener("focus", () => this.tokens.length && this.chosen === undefined && choose(0));
    this.list.addEventListener("keydown", (event) => {
      const to = this.tokens.length ? this.#reached(event.key) : null;
      if (to === null || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      choose(to);
    });
  }

  #reached(key) {
    const here = this.chosen ?? 0;
    const last = this.tokens.length - 1;
    const steps = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last };
    if (key in steps) return Math.max(0, Math.min(last, steps[key]));
    return key === "ArrowUp" || key === "ArrowDown" ? this.#line(here, key === "ArrowUp" ? -1 : 1) : null;
  }

  // The token above or below: on the next line in that direction, the nearest across.
  #line(here, direction) {
    const boxes = [...this.list.children].map((element) => element.getClientRects()[0]);
    const from = boxes[here];
    if (!from) return here;
    const beyond = boxes
      .map((box, i) => ({ i, box }))
      .filter(({ box }) => box && (box.top - from.top) * direction > from.height / 2);
    const nearest = beyond.reduce((least, { box }) => Math.min(least, Math.abs(box.top - from.top)), Infinity);
    const line = beyond.filter(({ box }) => Math.abs(box.top - from.top) < nearest + from.height / 2);
    line.sort((a, b) => Math.abs(a.box.left - from.left) - Math.abs(b.box.left - from.left));
    return line[0]?.i ?? here;
  }

  loading(bytes) {
    const all = this.about.weights.bytes;
    this.waiting.querySelector("progress").value = bytes / all;
    this.waiting.querySelector("progress").setAttribute("aria-label", `Weights of ${this.about.name}`);
    this.waiting.querySelector("p").textContent =
      bytes < all ? `Weights: ${megabytes(bytes)} of ${megabytes(all)}` : "Weights are here; the graph is being opened.";
  }

  // `told` is how it is computed.
  ready(told) {
    this.waiting.hidden = true;
    this.element.querySelector(".engine").textContent = told;
  }

  clear(prompt) {
    this.tokens = [];
    this.chosen = undefined;
    this.prompt.textContent = prompt;
    this.list.replaceChildren();
    this.list.removeAttribute("aria-activedescendant");
    this.speed.textContent = "";
    this.show(null);
  }

  push(token) {
    const i = this.tokens.push(token) - 1;
    const element = made("span", "token", token.text);
    element.id = `token-${this.index}-${i}`;
    element.dataset.at = i;
    element.dataset.id = token.id;
    element.role = "option";
    element.setAttribute("aria-selected", "false");
    element.setAttribute("aria-label", `${token.label}, ${percent(token.p)}`);
    element.classList.toggle("half", token.text === ""); // its bytes are shown with the token that completes them
    element.classList.toggle("other", token.kl !== undefined && token.likeliest !== token.id);
    const far = FAR.filter((limit) => token.kl >= limit).length;
    if (far) element.classList.add(`far-${far}`);
    this.list.append(element);
    const text = this.list.parentElement;
    if (this.chosen === undefined) text.scrollTop = text.scrollHeight; // nobody looks at an earlier token
  }

  // What is left of a character that was never completed.
  rest(text) {
    if (text) this.list.lastElementChild?.append(text);
  }

  mark(i) {
    this.list.children[i]?.classList.add("parts");
  }

  choose(i) {
    this.#element(this.chosen)?.classList.remove("chosen");
    this.#element(this.chosen)?.setAttribute("aria-selected", "false");
    this.chosen = i < this.tokens.length ? i : undefined;
    const element = this.#element(this.chosen);
    if (!element) return this.list.removeAttribute("aria-activedescendant");
    element.classList.add("chosen");
    element.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", element.id);
    this.#reveal(element);
    if (document.activeElement === this.list) element.scrollIntoView({ block: "nearest" });
  }

  // Scroll the text, and not the page.
  #reveal(element) {
    const text = this.list.parentElement;
    const [outer, inner] = [text, element].map((x) => x.getBoundingClientRect());
    if (inner.top < outer.top) text.scrollTop -= outer.top - inner.top + 8;
    else if (inner.bottom > outer.bottom) text.scrollTop += inner.bottom - outer.bottom + 8;
  }

  #element(i) {
    return i === undefined ? null : this.list.children[i];
  }

  // The bars of token i; `facts` is a sentence below them.
  show(i, facts = "") {
    const token = i === null ? undefined : this.tokens[i];
    this.facts.textContent = token ? facts : "";
    this.where.textContent = token
      ? `Token ${i + 1} of ${this.tokens.length}: ${token.label}`
      : "Of the token that is chosen in the text.";
    this.bars.replaceChildren(...(token ? this.#rows(token) : []));
  }

  #rows(token) {
    const rows = token.top.map((row) => this.#row(row, row.id === token.id));
    if (!token.top.some((row) => row.id === token.id)) {
      rows.push(this.#row(token, true));
      rows.at(-1).classList.add("beyond");
    }
    return rows;
  }

  #row({ label, p }, taken) {
    const row = made("li", taken ? "taken" : "");
    const track = made("span", "track");
    const bar = made("i", "");
    bar.style.width = `${100 * p}%`;
    track.append(bar);
    const name = made("span", "label", label);
    name.title = label;
    row.append(name, track, made("b", "", percent(p)));
    if (taken) row.append(made("span", "unseen", "taken"));
    return row;
  }
}
