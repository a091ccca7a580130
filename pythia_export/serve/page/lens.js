// The logit lens as a grid, tokens across and depths down; and what it says of the chosen place, in tables.

import { percent } from "./column.js";
import { Grid, made, readable } from "./grid.js";

const $ = (id) => document.getElementById(id);
const quoted = (text) => made("span", "quoted", text);

// Nats as a share of a colour: what is small matters too, and from one nat on it is full.
const far = (kl) => Math.sqrt(Math.min(1, kl));
export const nats = (x) => (x >= 0.0005 ? x.toPrecision(2) : "< 0.0005");
export const depthName = (depth) => (depth === 0 ? "embedding" : `layer ${depth - 1}`);

export class Lens {
  constructor(abouts, choose) {
    this.abouts = abouts;
    this.grid = new Grid($("lens"), (depth, token) => choose({ depth, token }));
  }

  show(view) {
    this.view = view;
    const { shown, seen, tokens, labels } = view;
    const depths = seen[shown[0]].top.length;
    const across = tokens.map((_, i) => {
      const head = made("span", "at");
      head.append(made("small", "", String(i + 1)), made("span", "", labels[i]));
      head.title = labels[i];
      return head;
    });
    const down = Array.from({ length: depths }, (_, depth) => depthName(depth));
    const of = shown.map((i) => this.abouts[i].name).join(" against ");
    this.grid.fill(`Logit lens of ${of}: likeliest next token by depth and token`, "after", across, down, (depth, token) =>
      shown.length === 2 ? this.#difference(depth, token) : this.#cell(shown[0], depth, token),
    );
    $("lens-one").hidden = shown.length === 2;
    $("lens-two").hidden = shown.length === 1;
  }

  #cell(side, depth, token) {
    const { seen, tokens, label, labels } = this.view;
    const [top, p] = [seen[side].top[depth][token][0], seen[side].p[depth][token][0]];
    const cell = made("td", top === tokens[token + 1] ? "follows" : "");
    cell.append(made("span", "", label(top)), made("small", "", percent(p)));
    cell.style.setProperty("--share", `${100 * p}%`);
    const follows = top === tokens[token + 1] ? ", which follows" : "";
    cell.setAttribute("aria-label", `After ${depthName(depth)}, at ${labels[token]}: ${label(top)}, ${percent(p)}${follows}`);
    return cell;
  }

  #difference(depth, token) {
    const { seen, tokens, label, labels, difference } = this.view;
    const [a, b] = seen.map((one) => one.top[depth][token][0]);
    const kl = difference.kl[depth][token];
    const cell = made("td", `apart${a === tokens[token + 1] ? " follows" : ""}${a === b ? "" : " other"}`);
    cell.append(made("span", "", label(a)), a === b ? made("small", "", nats(kl)) : made("small", "then", label(b)));
    cell.style.setProperty("--share", `${100 * far(kl)}%`);
    const both = a === b ? `${label(a)} in both` : `${label(a)} against ${label(b)}`;
    cell.setAttribute("aria-label", `After ${depthName(depth)}, at ${labels[token]}: ${both}, KL ${nats(kl)} nats`);
    return cell;
  }

  choose({ depth, token }) {
    this.grid.choose(depth, token);
    const { shown, seen, tokens, label, labels, difference } = this.view;
    const follows = tokens[token + 1];
    const caption = made("span");
    caption.append("At token ", String(token + 1), ", ", quoted(labels[token]), follows === undefined ? ", the last" : ", before ");
    if (follows !== undefined) caption.append(quoted(labels[token + 1]));
    const ofOne = (side, at) => [quoted(label(seen[side].top[at][token][0])), percent(seen[side].p[at][token][0])];
    const rank = (side, at) =>
      follows === undefined ? [] : [`${percent(seen[side].following[at][token])}, rank ${seen[side].rank[at][token]}`];
    const heads = shown.length === 2
      ? ["after", this.abouts[0].name, "", this.abouts[1].name, "", "KL, nats"]
      : ["after", "likeliest", "", ...(follows === undefined ? [] : ["what follows"])];
    const rows = Array.from({ length: seen[shown[0]].top.length }, (_, at) => [
      depthName(at),
      ...shown.flatMap((side) => ofOne(side, at)),
      ...(shown.length === 2 ? [nats(difference.kl[at][token])] : rank(shown[0], at)),
    ]);
    readable($("depths"), caption, heads, rows);
    $("depths").tBodies[0].rows[depth].classList.add("chosen");

    $("likeliest").replaceChildren(...shown.map((side) => this.#likeliest(side, depth, token)));
  }

  #likeliest(side, depth, token) {
    const { seen, tokens, label } = this.view;
    const table = made("table", "readable");
    const rows = seen[side].top[depth][token].map((id, i) => {
      const p = seen[side].p[depth][token][i];
      const track = made("span", "track");
      const bar = made("i");
      bar.style.width = `${100 * p}%`;
      track.append(bar);
      const name = quoted(label(id));
      if (id === tokens[token + 1]) name.append(made("span", "unseen", ", which follows"));
      return [name, track, percent(p)];
    });
    const of = this.abouts.length === 2 ? ` of ${this.abouts[side].name}` : "";
    readable(table, `Likeliest after ${depthName(depth)}${of}`, ["token", "", "share"], rows);
    seen[side].top[depth][token].forEach((id, i) => table.tBodies[0].rows[i].classList.toggle("chosen", id === tokens[token + 1]));
    return table;
  }
}
