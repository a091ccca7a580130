// From logits (a Float32Array, one number a token) to a token: greedy, or temperature, then top-p, then one draw, by the
// rules of pythia_export/runtime/sampling.py.

export function choose(logits, { temperature, topP }, draw) {
  if (temperature === 0) return likeliest(logits);
  const tokens = byFallingLogit(logits);
  const p = Float64Array.from(tokens, (token) => Math.exp((logits[token] - logits[tokens[0]]) / temperature));
  let total = p.reduce((sum, x) => sum + x, 0);
  let kept = p.length;
  if (topP !== null) {
    const enough = topP * (1 - 1e-12) * total;
    let sum = 0;
    for (kept = 0; kept < p.length && sum < enough; kept++) sum += p[kept];
    total = sum;
  }
  const at = draw() * total;
  let sum = 0;
  for (let i = 0; i < kept; i++) if ((sum += p[i]) > at) return tokens[i];
  return tokens[kept - 1]; // the sum may fall short by a rounding
}

// Of two equals the lower id.
export function likeliest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

// Sorting 50,000 numbers by a function takes 40 ms, sorting plain numbers 4: a logit's bits, made to fall, and its token
// go into one whole number below 2^53.
function byFallingLogit(logits) {
  const bits = new Uint32Array(logits.slice().buffer);
  const width = 2 ** 20;
  const keys = Float64Array.from(bits, (b, i) => (b & 0x80000000 ? b : ~(b | 0x80000000) >>> 0) * width + i).sort();
  return Uint32Array.from(keys, (key) => key % width);
}

// log sum exp, which turns a logit into the logarithm of its probability.
export function logNormaliser(logits) {
  let max = -Infinity;
  for (const x of logits) if (x > max) max = x;
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - max);
  const found = max + Math.log(sum);
  if (!Number.isFinite(found)) throw new Error("the model computed numbers that are not finite");
  return found;
}

// The `count` likeliest tokens, [token, probability] each, the likeliest first.
export function top(logits, normaliser, count) {
  const found = [];
  for (let i = 0; i < logits.length; i++) {
    if (found.length === count && logits[i] <= logits[found[count - 1]]) continue;
    let at = found.length === count ? count - 1 : found.length;
    for (; at > 0 && logits[found[at - 1]] < logits[i]; at--) found[at] = found[at - 1];
    found[at] = i;
  }
  return found.map((token) => [token, Math.exp(logits[token] - normaliser)]);
}

// KL divergence from the first model's distribution to the second's, nats: what the second loses by being another.
export function divergence(first, second) {
  const a = logNormaliser(first);
  const b = logNormaliser(second);
  let sum = 0;
  for (let i = 0; i < first.length; i++) {
    const log = first[i] - a;
    sum += Math.exp(log) * (log - (second[i] - b));
  }
  return Math.max(0, sum);
}
