// What heads look at: all of them as a grid, the chosen one's pattern as a picture, and what the chosen token looks at, in
// the text and in a table.

import { percent } from "./column.js";
import { Grid, made, readable } from "./grid.js";
import { nats } from "./lens.js";

const LISTED = 8; // tokens of the table
const LABELLED = 13; // pixels of a cell from which on its token is written beside it
const $ = (id) => document.getElementById(id);
const quoted = (text) => made("span", "quoted", text);
const signed = (x) => `${x < 0 ? "−" : "+"}${(100 * Math.abs(x)).toFixed(1)}`;

export class Attention {
  constructor(abouts, choose) {
    this.abouts = abouts;
    this.tell = choose;
    this.rows = null;
    this.grid = new Grid($("heads"), (layer, head) => choose({ layer, head }));
    this.#strip(choose);
    this.#picture(choose);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe($("pattern"));
  }

  show(view) {
    this.view = view;
    const { shown, seen, difference, tokens, texts, labels } = view;
    const figures = shown.length === 2 ? difference.heads : seen[shown[0]].heads;
    const across = figures[0].map((_, head) => String(head));
    const down = figures.map((_, layer) => String(layer));
    const name = shown.map((i) => this.abouts[i].name).join(" against ");
    const two = shown.length === 2;
    const [least, most] = [two ? 0 : Math.min(...figures.flat()), Math.max(...figures.flat(), 1e-9)];
    const unit = two ? (x) => nats(x) : percent;
    document.querySelectorAll("#within .range").forEach((range) => (range.textContent = `${unit(least)} to ${unit(most)}${two ? " nats" : ""}`));
    $("heads").classList.toggle("many", figures[0].length > 8);
    this.grid.fill(`Heads of ${name}, by layer`, "layer", across, down, (layer, head) => {
      const x = figures[layer][head];
      const said = two ? `${nats(x)} nats apart` : `${percent(x)} elsewhere`;
      const cell = made("td", two ? "apart" : "");
      cell.append(made("span", "unseen", `Layer ${layer}, head ${head}: ${said}`));
      cell.title = `Layer ${layer}, head ${head}: ${said}`;
      cell.style.setProperty("--share", `${(100 * (x - least)) / (most - least || 1)}%`);
      return cell;
    });
    $("heads-one").hidden = two;
    $("heads-two").hidden = !two;
    $("strip").replaceChildren(
      ...tokens.map((_, i) => {
        const token = made("span", "token", texts[i]);
        token.id = `strip-${i}`;
        token.dataset.at = i;
        token.role = "option";
        token.classList.toggle("half", texts[i] === "");
        token.setAttribute("aria-label", labels[i]);
        token.setAttribute("aria-selected", "false");
        return token;
      }),
    );
  }

  // The head to begin with: where the strongest colour is.
  strongest({ shown, seen, difference }) {
    const figures = shown.length === 2 ? difference.heads : seen[shown[0]].heads;
    const at = figures.flat().indexOf(Math.max(...figures.flat()));
    return { layer: Math.floor(at / figures[0].length), head: at % figures[0].length };
  }

  choose(chosen) {
    // What is shown of another head stays until this one's numbers come, under the other one's name.
    if (chosen.layer !== this.chosen?.layer || chosen.head !== this.chosen?.head) this.rows = null;
    this.chosen = { ...chosen };
    this.grid.choose(chosen.layer, chosen.head);
    this.#tell();
  }

  // The patterns of the chosen head came.
  pattern(rows) {
    this.rows = rows;
    this.#tell();
  }

  // What `query` gives to `key`, in the artifacts that are shown, and how much is to be seen of it: -1 to 1.
  #at(query, key) {
    const shares = this.view.shown.map((side) => this.rows[side]?.[query]?.[key] ?? 0);
    return { shares, seen: shares.length === 2 ? shares[1] - shares[0] : shares[0] };
  }

  #tell() {
    if (!this.rows || !this.view || this.rows[0]?.length !== this.view.tokens.length) return;
    const { layer, head, token, key } = this.chosen;
    const { shown, labels, tokens } = this.view;
    const two = shown.length === 2;
    const all = Array.from({ length: token + 1 }, (_, k) => ({ k, ...this.#at(token, k) }));
    const most = Math.max(...all.map(({ seen }) => Math.abs(seen)), 1e-9);
    [...$("strip").children].forEach((element, i) => {
      const seen = all[i]?.seen ?? 0;
      element.classList.toggle("less", seen < 0);
      element.classList.toggle("beyond", i > token);
      element.style.setProperty("--share", `${(100 * Math.abs(seen)) / most}%`);
      element.classList.toggle("chosen", i === token);
      element.setAttribute("aria-selected", String(i === token));
    });
    $("strip").setAttribute("aria-activedescendant", `strip-${token}`);

    const caption = made("span");
    caption.append(`Layer ${layer}, head ${head}: token ${token + 1}, `, quoted(labels[token]), ", looks at");
    const listed = all.toSorted((a, b) => Math.abs(b.seen) - Math.abs(a.seen)).slice(0, LISTED);
    const heads = two ? ["token", ...this.abouts.map((about) => about.name), "change"] : ["token", "", "share"];
    readable($("attended"), caption, heads, listed.map(({ k, shares, seen }) => {
      const name = made("span");
      name.append(made("small", "", `${k + 1} `), quoted(labels[k]));
      if (two) return [name, percent(shares[0]), percent(shares[1]), signed(seen)];
      const track = made("span", "track");
      const bar = made("i");
      bar.style.width = `${100 * seen}%`;
      track.append(bar);
      return [name, track, percent(seen)];
    }));

    this.#say(token, key);
    $("pattern").setAttribute("aria-label", `Attention pattern of layer ${layer}, head ${head}, ${tokens.length} tokens`);
    this.#draw();
  }

  #say(token, key) {
    const { labels, shown } = this.view;
    const { shares, seen } = this.#at(token, key);
    const numbers = shown.length === 2 ? `${percent(shares[0])}, then ${percent(shares[1])} (${signed(seen)})` : percent(seen);
    $("said-pattern").textContent = `Token ${token + 1} ${labels[token]} to token ${key + 1} ${labels[key]}: ${numbers}`;
  }

  #strip(choose) {
    const at = (event) => event.target.closest(".token")?.dataset.at;
    $("strip").addEventListener("click", (event) => at(event) && choose({ token: Number(at(event)) }));
    $("strip").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const last = this.view.tokens.length - 1;
      const to = { ArrowLeft: this.chosen.token - 1, ArrowRight: this.chosen.token + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose({ token: Math.max(0, Math.min(last, to)) });
    });
  }

  #picture(choose) {
    const element = $("pattern");
    const place = (event) => {
      if (!this.cell) return null;
      const box = element.querySelector("canvas").getBoundingClientRect();
      const key = Math.floor((event.clientX - box.left - this.left) / this.cell);
      const token = Math.floor((event.clientY - box.top - this.top) / this.cell);
      return key >= 0 && token >= key && token < this.view.tokens.length ? { token, key } : null;
    };
    element.addEventListener("click", (event) => place(event) && choose(place(event)));
    element.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse" || !this.rows) return;
      const found = place(event);
      element.classList.toggle("within", found !== null);
      const { token, key } = found ?? this.chosen;
      this.#say(token, key);
    });
    element.addEventListener("pointerleave", () => this.rows && this.#say(this.chosen.token, this.chosen.key));
    element.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.view) return;
      const { token, key } = this.chosen;
      const last = this.view.tokens.length - 1;
      const moves = {
        ArrowLeft: [token, key - 1], ArrowRight: [token, key + 1], ArrowUp: [token - 1, key], ArrowDown: [token + 1, key],
        Home: [token, 0], End: [token, token],
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const to = Math.max(0, Math.min(last, moves[event.key][0]));
      choose({ token: to, key: Math.max(0, Math.min(to, moves[event.key][1])) });
    });
  }

  #draw() {
    const element = $("pattern");
    const width = element.clientWidth;
    if (!this.rows || !this.view || width === 0 || this.rows[0]?.length !== this.view.tokens.length) return;
    const { tokens, labels, shown } = this.view;
    const n = tokens.length;
    const two = shown.length === 2;
    const room = Math.min(width, 460);
    const margin = Math.min(88, room / 4);
    let cell = Math.floor(Math.min(28, (room - margin) / n));
    const labelled = cell >= LABELLED;
    if (!labelled) cell = Math.max(2, Math.floor(room / n));
    this.cell = cell;
    this.left = labelled ? margin : 0;
    this.top = labelled ? margin : 0;
    const canvas = element.querySelector("canvas");
    const scale = devicePixelRatio || 1;
    const [w, h] = [this.left + n * cell + 2, this.top + n * cell + 2];
    canvas.width = w * scale;
    canvas.height = h * scale;
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const mix = (from, to, share) => `rgb(${parts(from).map((x, i) => Math.round(x + (parts(to)[i] - x) * share)).join()})`;
    const paint = canvas.getContext("2d");
    paint.setTransform(scale, 0, 0, scale, 0, 0);
    let most = 1e-9;
    for (let q = 0; q < n; q++) for (let k = 0; k <= q; k++) most = Math.max(most, Math.abs(this.#at(q, k).seen));
    for (let q = 0; q < n; q++)
      for (let k = 0; k <= q; k++) {
        const { seen } = this.#at(q, k);
        const share = two ? Math.abs(seen) / most : seen;
        paint.fillStyle = mix(colour("wash"), colour(seen < 0 ? "rtn" : "got"), share ** 0.7);
        paint.fillRect(this.left + k * cell, this.top + q * cell, cell - (cell > 6), cell - (cell > 6));
      }
    if (labelled) {
      paint.font = `${Math.min(12, cell - 2)}px ui-monospace, Menlo, "DejaVu Sans Mono", monospace`;
      paint.fillStyle = colour("soft");
      paint.textBaseline = "middle";
      for (let i = 0; i < n; i++) {
        const text = labels[i].length > 10 ? `${labels[i].slice(0, 9)}…` : labels[i];
        paint.textAlign = "right";
        paint.fillText(text, this.left - 5, this.top + (i + 0.5) * cell, this.left - 6);
        paint.save();
        paint.translate(this.left + (i + 0.5) * cell, this.top - 4);
        paint.rotate(-Math.PI / 2);
        paint.textAlign = "left";
        paint.fillText(text, 0, 0, this.top - 5);
        paint.restore();
      }
    }
    const { token, key } = this.chosen;
    paint.strokeStyle = colour("ink");
    paint.lineWidth = 1;
    paint.strokeRect(this.left - 0.5, this.top + token * cell - 0.5, (token + 1) * cell, cell);
    paint.lineWidth = 2;
    paint.strokeRect(this.left + key * cell - 0.5, this.top + token * cell - 0.5, cell, cell);
    $("full").textContent = two
      ? `Blue: the second looks there more; orange: less; full colour is ${(100 * most).toFixed(1)} points.`
      : "Blue: how much; rows look, columns are looked at.";
  }
}
