// One model in a thread of its own, so that the page never freezes. It is told { do, ... } and tells { is, ... }.

import { generator } from "./random.js";
import { choose, divergence, likeliest, logNormaliser, top } from "./sampling.js";
import { asked, Session } from "./session.js";
import { Words } from "./text.js";

const SHOWN = 10; // likeliest tokens at each place
const CHUNK = 128; // tokens read at once: bounds what attention and logits need
const TOLD = 1 << 20; // bytes between two words about loading

const MEASURED = 4; // tokens by which ways are compared, after one that warms up

let session, words;
let stopped = false;

class Unfit extends Error {} // what was asked, not how it was computed

const jobs = {
  async load({ about, by }) {
    const tokenizer = await (await asked(`${about.at}/tokenizer.json`)).json();
    words = new Words(tokenizer);
    let last = 0;
    session = await Session.open(about, by, (bytes) => {
      if (bytes - last < TOLD && bytes < about.weights.bytes) return;
      last = bytes;
      postMessage({ is: "loading", bytes });
    });
    await session.step([0], 1); // the first step allocates: no text should pay for it
    postMessage({ is: "ready" });
  },

  // Seconds a token, and the logits that came last, for a comparison with another way of computing.
  async measure() {
    session.start();
    let logits, began;
    for (let i = 0; i <= MEASURED; i++) {
      if (i === 1) began = performance.now();
      [logits] = await session.step([i], 1);
    }
    const seconds = (performance.now() - began) / 1000 / MEASURED;
    logNormaliser(logits);
    postMessage({ is: "measured", seconds, logits });
  },

  // Continue `prompt` by `count` tokens. With `keep` each token comes with its logits, for another model's `follow`.
  async generate({ prompt, count, sampling, keep }) {
    const ids = words.encode(prompt);
    if (ids.length === 0) throw new Unfit("There is no text to continue. <|endoftext|> begins a new document.");
    const room = session.about.positions - ids.length;
    if (count > room)
      throw new Unfit(
        `${ids.length} tokens of text and ${count} new ones; this model has ${session.about.positions} positions. ` +
          (room > 0 ? `Ask for at most ${room} new tokens.` : "Shorten the text."),
      );
    stopped = false;
    const draw = generator(sampling.seed);
    const text = words.stream();
    const began = performance.now();
    let logits = await prefill(ids);
    const first = performance.now();
    postMessage({ is: "prefilled", ids, seconds: (first - began) / 1000 });
    let made = 0;
    let last;
    let why = "count";
    for (; made < count; made++) {
      if (made > 0) logits = (await session.step([last], 1))[0];
      if (stopped) {
        why = "stopped";
        break;
      }
      last = choose(logits, sampling, draw);
      if (session.about.ends.includes(last)) {
        why = "end";
        break;
      }
      const token = { ...looked(logits, last), text: text.push(last) };
      postMessage({ is: "token", token, logits: keep ? logits : null }, keep ? [logits.buffer] : []);
      await turn();
    }
    const seconds = (performance.now() - first) / 1000;
    postMessage({ is: "generated", made, seconds, why, rest: text.finish() });
  },

  // Read the tokens that another model wrote, and say how likely each was here. `logits` are the other model's.
  async follow({ ids, tokens, logits }) {
    stopped = false;
    const text = words.stream();
    const began = performance.now();
    let seen = [await prefill(ids)];
    for (let at = 0; at < tokens.length; ) {
      const found = seen.map((here, i) => {
        const token = tokens[at + i];
        return { ...looked(here, token), text: text.push(token), kl: divergence(logits[at + i], here) };
      });
      postMessage({ is: "followed", tokens: found });
      const next = tokens.slice(at + seen.length - 1, Math.min(at + seen.length - 1 + CHUNK, tokens.length - 1));
      at += seen.length;
      await turn();
      if (stopped || next.length === 0) break;
      seen = await session.step(next, next.length);
    }
    postMessage({ is: "read", seconds: (performance.now() - began) / 1000, rest: text.finish() });
  },
};

async function prefill(ids) {
  session.start();
  let logits;
  for (let at = 0; at < ids.length; at += CHUNK) {
    [logits] = await session.step(ids.slice(at, at + CHUNK), 1);
    await turn();
    if (stopped) break;
  }
  return logits;
}

// What stands in the page for one place: the token taken, its probability, and the likeliest ones.
function looked(logits, id) {
  const normaliser = logNormaliser(logits);
  const labelled = ([token, p]) => ({ id: token, p, label: words.label(token) });
  return {
    id,
    label: words.label(id),
    p: Math.exp(logits[id] - normaliser),
    likeliest: likeliest(logits),
    top: top(logits, normaliser, SHOWN).map(labelled),
  };
}

// Let messages in: a worker that awaits WebAssembly alone never hears "stop".
const { port1, port2 } = new MessageChannel();
const turn = () =>
  new Promise((go) => {
    port1.onmessage = go;
    port2.postMessage(null);
  });

onmessage = async ({ data }) => {
  if (data.do === "stop") {
    stopped = true;
    return;
  }
  try {
    await jobs[data.do](data);
  } catch (error) {
    postMessage({ is: "failed", why: plainly(error), broken: !(error instanceof Unfit) });
  }
};

function plainly(error) {
  const said = String(error?.message ?? error);
  if (/bad_alloc|out of memory|allocat|Array buffer|Invalid typed array length|RangeError/i.test(`${error?.name} ${said}`))
    return `The browser has no memory for this. Close other tabs, or serve a smaller artifact. (${said})`;
  if (/WebAssembly|wasm/i.test(said)) return `WebAssembly does not run in this browser. (${said})`;
  return said;
}
