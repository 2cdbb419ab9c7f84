// Reading what Python wrote: JSON whose whole numbers may need 64 bits, hashes, safetensors.

/** SHA-256 of a typed array's or an ArrayBuffer's bytes, in hexadecimal. */
export async function sha256(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Parse JSON; a whole number that a double cannot hold becomes a BigInt. */
export function parseJson(text) {
  return JSON.parse(text, (_, value, context) => {
    if (typeof value !== "number" || !Number.isInteger(value)) return value;
    if (Number.isSafeInteger(value) || !/^-?\d+$/.test(sourceOf(context))) return value;
    return BigInt(context.source);
  });
}

/** The JSON that Python's `json.dumps(.., sort_keys=True, separators=(",", ":"))` writes. */
export function canonicalJson(text, without) {
  const marked = JSON.parse(text, (_, value, context) =>
    typeof value === "number" ? new AsWritten(sourceOf(context)) : value,
  );
  delete marked[without];
  return written(marked);
}

class AsWritten {
  constructor(source) {
    this.source = source;
  }
}

function sourceOf(context) {
  if (context?.source === undefined) throw new Error("this browser is too old: update it");
  return context.source;
}

function written(value) {
  if (value instanceof AsWritten) return value.source;
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  if (value === null || typeof value !== "object") {
    const escaped = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, escaped);
  }
  const pairs = Object.keys(value).sort().map((key) => `${written(key)}:${written(value[key])}`);
  return `{${pairs.join(",")}}`;
}

/** Tensors of a safetensors file by name: Float32Array of those in F16 or F32, the rest left out. */
export function floatTensors(buffer, name) {
  const wrong = new Error(`${name}: not a safetensors file, or damaged`);
  if (buffer.byteLength < 8) throw wrong;
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > buffer.byteLength - 8) throw wrong;
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const found = {};
  for (const [tensor, { dtype, data_offsets: places }] of Object.entries(header)) {
    const width = { F16: 2, F32: 4 }[dtype];
    if (!width) continue;
    const data = buffer.slice(8 + length + places[0], 8 + length + places[1]);
    if (data.byteLength !== places[1] - places[0]) throw wrong;
    const view = new DataView(data);
    found[tensor] = Float32Array.from({ length: data.byteLength / width }, (_, i) =>
      width === 2 ? half(view.getUint16(2 * i, true)) : view.getFloat32(4 * i, true),
    );
  }
  return found;
}

/** The number whose float16 bits these are. */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
