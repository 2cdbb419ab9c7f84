// The noise of runtime/estimators/noise.py, the same bits: Philox 4x64 with 10 rounds (Salmon et
// al., SC 2011), then +-1 or a table of Gaussian quantiles. tests/vectors/noise.json is what both
// are checked against.

const MASK = (1n << 64n) - 1n;
const LARGEST = { seed: MASK, step: (1n << 48n) - 1n, probe: 65535n };

/** Numbers of a kind are these integers times its unit. */
export const UNIT = { rademacher: 1, gaussian: 2 ** -13 };

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

/** `count` entries in units of `UNIT[kind]`: an Int8Array or an Int16Array. */
export function integers(kind, count, seed, step, probe) {
  if (kind === "rademacher") {
    const bytes = new Uint8Array(words(count / 64, seed, step, probe).buffer);
    const out = new Int8Array(count);
    for (let i = 0; i < count; i++) out[i] = (bytes[i >> 3] >> (i & 7)) & 1 ? 1 : -1;
    return out;
  }
  if (kind !== "gaussian") throw new Error(`noise: kind "${kind}" is not known`);
  const fields = new Uint16Array(words(count / 4, seed, step, probe).buffer);
  const table = quantiles();
  const out = new Int16Array(count);
  for (let i = 0; i < count; i++) out[i] = table[fields[i] >> 4];
  return out;
}

/**
 * Add `scale * z` to a Float32Array in place. Product and sum are rounded to float32 apart, as
 * numpy does it; a sum of two float32 numbers in double precision rounds to the same float32.
 */
export function addNoise(values, scale, kind, seed, step, probe) {
  const z = integers(kind, values.length, seed, step, probe);
  const unit = UNIT[kind];
  const rounded = Math.fround(scale);
  for (let i = 0; i < z.length; i++) {
    values[i] += Math.fround(unit * z[i] * rounded);
  }
}

let kept = null;

/** 4096 equally likely values of a standard normal distribution, times 8192: Int16Array. */
export function quantiles() {
  if (kept) return kept;
  const upper = Array.from({ length: 2048 }, (_, i) => inverseNormal((2048 + i + 0.5) / 4096));
  const spread = Math.sqrt(upper.reduce((sum, q) => sum + q * q, 0) / 2048);
  kept = new Int16Array(4096);
  upper.forEach((q, i) => {
    // No quotient is near a tie, so that the last bits of a browser's logarithm do not matter.
    kept[2048 + i] = Math.round((8192 * q) / spread);
    kept[2047 - i] = -kept[2048 + i];
  });
  return kept;
}

/** Wichura's algorithm AS 241 (1988) for 0.5 < p < 1 - 1e-10. */
function inverseNormal(p) {
  const ratio = (x, above, below) => polynomial(x, above) / polynomial(x, below);
  const q = p - 0.5;
  if (q <= 0.425) return q * ratio(0.180625 - q * q, A, B);
  return ratio(Math.sqrt(-Math.log(1 - p)) - 1.6, C, D);
}

const polynomial = (x, coefficients) => coefficients.reduceRight((sum, c) => sum * x + c, 0);

const A = [
  3.387132872796366608, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
  45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727,
];
const B = [
  1, 42.313330701600911252, 687.1870074920579083, 5394.1960214247511077, 21213.794301586595867,
  39307.89580009271061, 28729.085735721942674, 5226.495278852545925,
];
const C = [
  1.42343711074968357734, 4.6303378461565452959, 5.7694972214606914055, 3.64784832476320460504,
  1.27045825245236838258, 0.24178072517745061177, 0.0227238449892691845833, 7.7454501427834140764e-4,
];
const D = [
  1, 2.05319162663775882187, 1.6763848301838038494, 0.68976733498510000455, 0.14810397642748007459,
  0.0151986665636164571966, 5.475938084995344946e-4, 1.05075007164441684324e-9,
];
