// The model in onnxruntime-web: a text to the log-probabilities of its labels' words.

import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

// Several threads would take headers that a plain server of files does not send.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;

/** Predicts with a bundle's ONNX program; see `openBundle` for `bundle`. */
export class Model {
  static async open(bundle) {
    const [graph, ...tensors] = bundle.program;
    const session = await ort.InferenceSession.create(graph[1], {
      executionProviders: ["wasm"],
      externalData: tensors.map(([path, data]) => ({ path, data })),
      enableMemPattern: false, // sizes differ from text to text
    });
    bundle.program.clear(); // the session has its own copies
    return new Model(bundle, session);
  }

  constructor(bundle, session) {
    this.session = session;
    this.manifest = bundle.manifest;
    this.tokenizer = new Tokenizer(bundle.tokenizer, {});
  }

  /** Token ids of a text, with the special tokens that the tokenizer puts around it. */
  ids(text) {
    return this.tokenizer.encode(text).ids;
  }

  /** Zeros for what a text head and terms of the blocks learn: this page only chooses answers. */
  nothingLearned() {
    const learned = this.session.inputMetadata.filter(({ name }) => /^(adapter|term_\d+)$/.test(name));
    const zeros = ({ shape }) => new ort.Tensor("float32", new Float32Array(shape[0] * shape[1]), shape);
    return Object.fromEntries(learned.map((each) => [each.name, zeros(each)]));
  }

  /** Keys and values of no token in front, and none to be kept, where the program takes them. */
  noPrefix() {
    const blocks = this.session.inputMetadata.filter(({ name }) => name.startsWith("prefix_"));
    if (blocks.length === 0) return {};
    const empty = ({ shape: [, heads, ...rest] }) => {
      const dims = [1, heads, ...rest.map((size) => (typeof size === "number" ? size : 0))];
      return new ort.Tensor("float32", new Float32Array(0), dims);
    };
    const given = blocks.map((block) => [block.name, empty(block)]);
    return { kept: whole([], [0]), ...Object.fromEntries(given) };
  }

  /**
   * @param task a classification task's specification.
   * @param fields text by name, of each that the template names.
   * @param values Float32Array of the sensitive values.
   * @returns by label: `logp` of its word's first token, and `share` among the labels.
   */
  async predict(task, fields, values) {
    const { bounds, tokenizer } = this.manifest;
    const prompt = render(task.template, fields);
    const tokens = this.ids(prompt);
    if (tokens.length === 0) throw new Error("the text is empty");
    if (tokens.length > bounds.length) {
      throw new Error(`the text has ${tokens.length} tokens, at most ${bounds.length}; shorten it`);
    }
    const labels = Object.keys(task.verbalisers);
    const candidates = labels.map((label) => {
      const word = task.verbalisers[label];
      const both = this.ids(prompt + word);
      if (both.length <= tokens.length || tokens.some((id, i) => id !== both[i])) {
        throw new Error(`the word "${word}" merges with the end of the text; end it otherwise`);
      }
      return both[tokens.length];
    });
    const last = tokens.length - 1;
    if (tokens.length === 1) tokens.push(tokenizer.pad_id); // a program takes two and more
    const { logp } = await this.session.run({
      tokens: whole(tokens, [1, tokens.length]),
      positions: whole([last], [1]),
      candidates: whole(candidates, [1, candidates.length]),
      values: new ort.Tensor("float32", values, [1, values.length]),
      ...this.nothingLearned(),
      ...this.noPrefix(),
    }, ["logp"]);
    const found = Array.from(logp.data);
    const most = Math.max(...found);
    const sum = found.reduce((total, each) => total + Math.exp(each - most), 0);
    return Object.fromEntries(
      labels.map((label, i) => [label, { logp: found[i], share: Math.exp(found[i] - most) / sum }]),
    );
  }
}

const whole = (numbers, dims) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);

const PLACE = /\{\{|\}\}|\{(\w+)\}/g;

/** Names in a template's braces, in order. */
export function fieldsOf(template) {
  return [...new Set([...template.matchAll(PLACE)].map((match) => match[1]).filter(Boolean))];
}

function render(template, fields) {
  return template.replace(PLACE, (found, name) => (name ? fields[name] : found[0]));
}
