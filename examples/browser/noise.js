// The noise of runtime/estimators/noise.py, the same bits: Philox 4x64 with 10 rounds (Salmon et
// al., SC 2011), whose bits are +-1. tests/vectors/noise.json is what both are checked against.

const MASK = (1n << 64n) - 1n;
const LARGEST = { seed: MASK, step: (1n << 48n) - 1n, probe: 65535n };

/** The first raw words: BigUint64Array, `count` rounded up to whole blocks of four. */
export function words(count, seed, step, probe) {
  const key = { seed: BigInt(seed), step: BigInt(step), probe: BigInt(probe) };
  for (const [name, value] of Object.entries(key)) {
    if (value < 0n || value > LARGEST[name]) throw new Error(`noise: ${name} ${value} is too large`);
  }
  const out = new BigUint64Array(Math.ceil(count / 4) * 4);
  for (let first = 0; first < out.length; first += 4) {
    let [c0, c1, c2, c3] = [BigInt(first / 4 + 1), 0n, 0n, 0n];
    let [k0, k1] = [key.seed, (key.step << 16n) | key.probe];
    for (let round = 0; round < 10; round++) {
      const p0 = 0xd2e7470ee14c6c93n * c0;
      const p1 = 0xca5a826395121157n * c2;
      [c0, c1, c2, c3] = [(p1 >> 64n) ^ c1 ^ k0, p1 & MASK, (p0 >> 64n) ^ c3 ^ k1, p0 & MASK];
      k0 = (k0 + 0x9e3779b97f4a7c15n) & MASK;
      k1 = (k1 + 0xbb67ae8584caa73bn) & MASK;
    }
    out.set([c0, c1, c2, c3], first);
  }
  return out;
}

/** `count` entries, +1 or -1 each: an Int8Array. */
export function signs(count, seed, step, probe) {
  const bytes = new Uint8Array(words(count / 64, seed, step, probe).buffer);
  const out = new Int8Array(count);
  for (let i = 0; i < count; i++) out[i] = (bytes[i >> 3] >> (i & 7)) & 1 ? 1 : -1;
  return out;
}

/**
 * Add `scale * z` to a Float32Array in place. The product is exact; the sum of two float32 numbers
 * in double precision rounds to float32 as numpy's does.
 */
export function addNoise(values, scale, seed, step, probe) {
  const z = signs(values.length, seed, step, probe);
  const rounded = Math.fround(scale);
  for (let i = 0; i < z.length; i++) values[i] += z[i] * rounded;
}
