// The journal's bytes to its header and records, as runtime/journal/format.py describes them.

import { half, parseJson } from "./files.js";

const MAGIC = "SEEDTJRN";
const VERSION = 5;
const NOT_A_NUMBER = 0x7c00;

/**
 * Header and records of a journal. Like the library it leaves out a torn end, which a crash
 * explains, and refuses any other damage.
 *
 * A record has its `kind`: step (`scalars`), skip, evaluation (`loss`, `metric`), change (`field`,
 * `value`), end (`digest`, half a SHA-256 in hexadecimal), or other.
 */
export function readJournal(buffer, name) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const text = (from, to) => new TextDecoder().decode(bytes.subarray(from, to));
  if (bytes.length < 14 || text(0, 8) !== MAGIC) throw new Error(`${name}: not a journal`);
  const end = 14 + view.getUint32(10, true);
  if (end + 4 > bytes.length || crc32(bytes.subarray(0, end)) !== view.getUint32(end, true)) {
    throw new Error(`${name}: its header is damaged; copy the run again`);
  }
  if (view.getUint16(8, true) !== VERSION) {
    throw new Error(`${name}: written by another seedtune than this page is for`);
  }
  const header = parseJson(text(14, end));
  return { header, records: readRecords(bytes, view, header, end + 4, name) };
}

function readRecords(bytes, view, header, start, name) {
  const count = header.scalar_count;
  const records = [];
  let crc = crc32(bytes.subarray(0, start - 4));
  let written = bytes.length; // from there on, zeros
  while (written && !bytes[written - 1]) written--;
  let at = start;
  while (at + 4 <= bytes.length) {
    const word = view.getUint16(at, true);
    const check = view.getUint16(at + 2, true);
    const named = (word & NOT_A_NUMBER) === NOT_A_NUMBER;
    const damage = new Error(`${name}: damaged at byte ${at}; copy the run again`);
    let size = count === 1 ? 4 : 2 * count + 4;
    let after = crc;
    if (named) {
      after = crc32(bytes.subarray(at, at + 2), crc);
      if ((word & 0x3ff) === 0 || after >>> 16 !== check) {
        if (written <= at + 4) break;
        throw damage;
      }
      size = 8 + (word & 0xff);
    }
    if (at + size > bytes.length) break;
    const payload = bytes.subarray(named ? at + 4 : at, at + (size === 4 ? 2 : size - 4));
    after = crc32(payload, after);
    const good =
      size === 4 ? after >>> 16 === check : after === view.getUint32(at + size - 4, true);
    if (!good || written <= at + size - (size === 4 ? 2 : 4)) {
      if (written <= at + size) break;
      throw damage;
    }
    records.push(named ? record(word, payload) : step(payload));
    at += size;
    crc = after;
  }
  return records;
}

function step(payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const scalars = Array.from({ length: payload.length / 2 }, (_, i) =>
    half(view.getUint16(2 * i, true)),
  );
  return { kind: "step", scalars };
}

function record(word, payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  switch (((word >> 8) & 3) | ((word >> 15) << 2)) {
    case 0:
      return {
        kind: "evaluation", loss: view.getFloat32(0, true), metric: view.getFloat32(4, true),
      };
    case 1:
      return { kind: "skip" };
    case 2: {
      const [[field, value]] = Object.entries(parseJson(new TextDecoder().decode(payload)));
      return { kind: "change", field, value };
    }
    case 4: {
      const digest = Array.from(payload.subarray(0, 16), (b) => b.toString(16).padStart(2, "0"));
      return { kind: "end", digest: digest.join("") };
    }
  }
  return { kind: "other" };
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = (byte >>> 1) ^ (byte & 1 ? 0xedb88320 : 0);
  return byte;
});

/** CRC-32 of `bytes`, or of all before them and `bytes` if `previous` is given. */
export function crc32(bytes, previous = 0) {
  let register = ~previous;
  for (const byte of bytes) register = TABLE[(register ^ byte) & 0xff] ^ (register >>> 8);
  return ~register >>> 0;
}
