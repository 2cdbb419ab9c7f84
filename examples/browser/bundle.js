// A bundle's folder as the browser's file picker gives it, checked against its own hashes.

import { canonicalJson, floatTensors, parseJson, sha256 } from "./files.js";

const VERSION = 8;

/**
 * Open a bundle and check every file that the page uses.
 *
 * @param files array of File, the folder's.
 * @returns `sha256`, `manifest`, `values` (Float32Array, of the start), `tokenizer` (parsed JSON)
 *   and `program`: the files of the ONNX program by name, the graph first.
 */
export async function openBundle(files) {
  const byName = new Map(files.map((file) => [file.name, file]));
  const take = (name) => {
    const file = byName.get(name);
    if (!file) throw new Error(`bundle: ${name} is missing; open the folder of a bundle`);
    return file;
  };
  const text = await take("manifest.json").text();
  let manifest;
  try {
    manifest = parseJson(text);
  } catch (error) {
    throw new Error(`manifest.json: not JSON (${error.message}); copy the bundle again`);
  }
  if (manifest.format !== "seedtune-bundle") throw new Error("manifest.json: not a bundle's");
  if (manifest.version !== VERSION) throw new Error("manifest.json: of another seedtune");
  const own = await sha256(new TextEncoder().encode(canonicalJson(text, "sha256")));
  if (own !== manifest.sha256) throw new Error("manifest.json: altered; copy the bundle again");
  const onnx = manifest.programs?.find((program) => program.format === "onnx");
  if (!onnx || !manifest.adapter) {
    throw new Error("bundle: has no ONNX program; export it with --to onnx");
  }
  const parts = new Map();
  for (const name of [...onnx.files, "values.safetensors", "tokenizer.json"]) {
    const data = await take(name).arrayBuffer();
    if ((await sha256(data)) !== manifest.parts[name].sha256) {
      throw new Error(`${name}: truncated or altered; copy the bundle again`);
    }
    parts.set(name, data);
  }
  const { values } = floatTensors(parts.get("values.safetensors"), "values.safetensors");
  if (values?.length !== manifest.mask.entries) throw new Error("values.safetensors: other values");
  return {
    sha256: own,
    manifest,
    values,
    tokenizer: parseJson(new TextDecoder().decode(parts.get("tokenizer.json"))),
    program: new Map(onnx.files.map((name) => [name, new Uint8Array(parts.get(name))])),
  };
}
