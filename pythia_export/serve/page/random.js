// numpy's default generator, so that a seed draws here what `pythia-export generate --seed` draws.
//
// SeedSequence mixes the seed into a pool (O'Neill, https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html);
// PCG64 is its 128-bit generator XSL-RR (https://www.pcg-random.org/paper.html).

const POOL = 4;
const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

// Eight uint32 from a list of uint32.
function seedSequence(entropy) {
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value = (value ^ constant) >>> 0;
    constant = Math.imul(constant, 0x931e8875) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (x, y) => {
    const mixed = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) >>> 0;
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  const pool = Array.from({ length: POOL }, (_, i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < POOL; from++)
    for (let to = 0; to < POOL; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  for (const extra of entropy.slice(POOL)) for (let to = 0; to < POOL; to++) pool[to] = mix(pool[to], hash(extra));

  let other = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => {
    let value = (pool[i % POOL] ^ other) >>> 0;
    other = Math.imul(other, 0x58f38ded) >>> 0;
    value = Math.imul(value, other) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  });
}

// An integer of 0 or more as numpy splits it: words of 32 bits, the low one first.
function words(seed) {
  const found = [];
  for (let left = BigInt(seed); left > 0n || found.length === 0; left >>= 32n) found.push(Number(left & 0xffffffffn));
  return found;
}

// A function that draws a number from 0 up to 1, as `numpy.random.default_rng([seed, 0]).random()`; without a seed, any.
export function generator(seed) {
  if (seed === null) return () => crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32;
  const s = seedSequence([...words(seed), 0]).map(BigInt);
  const [a, b, c, d] = [0, 2, 4, 6].map((i) => s[i] | (s[i + 1] << 32n));
  const increment = ((((c << 64n) | d) << 1n) | 1n) & MASK128;
  const next = (state) => (state * MULTIPLIER + increment) & MASK128;
  let state = next((next(0n) + ((a << 64n) | b)) & MASK128);
  return () => {
    state = next(state);
    const folded = (state >> 64n) ^ (state & MASK64);
    const turn = state >> 122n;
    const drawn = ((folded >> turn) | (folded << (64n - turn))) & MASK64;
    return Number(drawn >> 11n) / 2 ** 53;
  };
}
