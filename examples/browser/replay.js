// From a bundle's values and a run's journal to the tuned values, the same bits as
// runtime/journal/state.py gives.

import { floatTensors, sha256 } from "./files.js";
import { addNoise } from "./noise.js";

/** Of runs that this page can replay; the others need more than noise and an update. */
const ESTIMATOR = "two-point";

/**
 * Replay all steps of a journal (as `readJournal` gives it).
 *
 * @param start Float32Array, the bundle's values; left as it is.
 * @param readSnapshot name of a file beside the journal to its bytes; asked of compacted runs alone.
 * @returns `steps`, `values` and `sha256` after the last one; `best` values, after `bestStep`.
 */
export async function replay({ header, records }, start, bundleSha256, readSnapshot) {
  const settings = { ...header.settings };
  if (settings.estimator !== ESTIMATOR) {
    throw new Error(
      `journal: a run of the estimator ${settings.estimator}; this page replays ${ESTIMATOR}: ` +
        "tune with --estimator two-point, or use 'seedtune predict'",
    );
  }
  if (header.bundle_sha256 !== bundleSha256) {
    const [of, given] = [header.bundle_sha256, bundleSha256].map((hash) => hash.slice(0, 12));
    throw new Error(`journal: of the bundle ${of}..., not ${given}...: open the bundle that it is of`);
  }
  if (header.values_sha256 !== (await sha256(start))) {
    throw new Error("journal: the bundle's values are not those of the run's start");
  }
  const snapshot = header.snapshot ? await openSnapshot(header.snapshot, start, readSnapshot) : null;
  const first = header.snapshot?.step ?? 0;
  const values = (snapshot?.values ?? start).slice();
  const best = bestEvaluation(header, records);
  let kept = null;
  if (best !== null && best.step <= first) kept = snapshot?.best ?? start;
  let steps = first;
  for (const record of records) {
    if (record.kind === "change") settings[record.field] = record.value;
    if (record.kind === "end" && record.digest !== (await sha256(values)).slice(0, 32)) {
      throw new Error(`journal: values after step ${steps} are not those that the run had`);
    }
    if (record.kind === "step") update(values, record.scalars, settings, steps);
    if (record.kind === "step" || record.kind === "skip") steps++;
    if (record.kind === "evaluation" && steps === best?.step) kept ??= values.slice();
  }
  const hash = await sha256(values);
  return { steps, values, sha256: hash, best: kept ?? values, bestStep: best?.step ?? steps };
}

/** One step: `values += float32(-lr * scalar / q) * z` for each of the q seeds in turn. */
export function update(values, scalars, settings, step) {
  const lr = learningRate(settings, step);
  scalars.forEach((scalar, probe) => {
    const scale = (-lr * scalar) / scalars.length;
    addNoise(values, scale, settings.seed, step, probe);
  });
}

function learningRate({ lr, steps, schedule }, step) {
  return schedule === "linear" ? lr * Math.max(0, 1 - step / steps) : lr;
}

/** Step, loss and metric of the best evaluation, the earliest of equals; null if there is none. */
function bestEvaluation(header, records) {
  let steps = header.snapshot?.step ?? 0;
  const found = (header.snapshot?.evaluations ?? []).map(([step, loss, metric]) => ({
    step, loss, metric,
  }));
  for (const { kind, loss, metric } of records) {
    if (kind === "step" || kind === "skip") steps++;
    if (kind === "evaluation") found.push({ step: steps, loss, metric });
  }
  // As ``History._beats`` of the runtime: shares of rows within a standard error are told by loss.
  const rows = header.metric.rows ?? 0;
  const cost = ({ metric }) => (header.metric.higher_is_better ? -metric : metric);
  const lower = (one, other) =>
    one.loss < other.loss || (one.loss === other.loss && cost(one) < cost(other));
  let best = null;
  let least = Infinity;
  for (const each of found) {
    if (!Number.isFinite(each.loss) || !Number.isFinite(each.metric)) continue;
    least = Math.min(least, cost(each));
    const share = (rows * Math.min(1, Math.abs(least)) + 1) / (rows + 2);
    const limit = least + (rows ? Math.sqrt((share * (1 - share)) / rows) : 0);
    const within = cost(each) <= limit;
    if (best === null || (within && (cost(best) > limit || lower(each, best)))) best = each;
  }
  return best;
}

async function openSnapshot(snapshot, start, read) {
  const data = await read(snapshot.file);
  if ((await sha256(data)) !== snapshot.sha256) {
    throw new Error(`${snapshot.file}: is not the one that the journal was cut at`);
  }
  const { values, best } = floatTensors(data, snapshot.file);
  for (const each of [values, best ?? values]) {
    if (each?.length !== start.length) throw new Error(`${snapshot.file}: has other values`);
  }
  return { values, best };
}
