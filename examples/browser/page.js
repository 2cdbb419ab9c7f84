// What the page does: a bundle, a run of it, then texts.

import { openBundle } from "./bundle.js";
import { readJournal } from "./journal.js";
import { Model, fieldsOf } from "./model.js";
import { replay } from "./replay.js";

const at = (id) => document.getElementById(id);
const open = { bundle: null, model: null, values: null, task: null };

/** Run the work of one control, and put what it says, or why it failed, below it. */
function on(id, event, place, work) {
  at(id).addEventListener(event, async (happened) => {
    happened.preventDefault();
    const out = at(place);
    out.className = "busy";
    out.textContent = "…";
    try {
      out.textContent = await work(happened.target);
      out.className = "done";
    } catch (error) {
      out.textContent = error.message.split("\n")[0];
      out.className = "failed";
    }
  });
}

on("bundle", "change", "bundle-said", async (input) => {
  show(null);
  open.bundle = null;
  await open.model?.session.release();
  open.model = null;
  const bundle = await openBundle([...input.files]);
  open.model = await Model.open(bundle);
  open.bundle = bundle;
  open.values = bundle.values;
  show(bundle.manifest.task);
  const { name } = bundle.manifest.model;
  return `${name}, ${bundle.values.length} values, bundle ${bundle.sha256.slice(0, 12)}`;
});

on("run", "change", "run-said", async (input) => {
  if (!open.bundle) throw new Error("open a bundle first");
  const files = new Map([...input.files].map((file) => [file.name, file]));
  const take = (name) => {
    if (!files.has(name)) throw new Error(`${name} is missing; open the folder of a run`);
    return files.get(name).arrayBuffer();
  };
  const journal = readJournal(await take("journal.bin"), "journal.bin");
  const done = await replay(journal, open.bundle.values, open.bundle.sha256, take);
  open.values = done.best;
  show(journal.header.task?.spec ?? open.bundle.manifest.task);
  return `${done.steps} steps, values ${done.sha256}; predicting with those of step ${done.bestStep}`;
});

on("ask", "submit", "answer", async (form) => {
  if (!open.model) throw new Error("open a bundle first");
  if (!open.task) throw new Error("the bundle has no task: open a run");
  const fields = Object.fromEntries(new FormData(form));
  const found = await open.model.predict(open.task, fields, open.values);
  const lines = Object.entries(found).map(
    ([label, { logp, share }]) =>
      `${label} (${open.task.verbalisers[label].trim()}): ${share.toFixed(4)}, ` +
      `log-probability ${logp.toFixed(4)}`,
  );
  return lines.join("\n");
});

/** Ask for the fields of a task; null: of none. */
function show(task) {
  if (task && task.kind !== "classification") {
    throw new Error(`the task is ${task.kind}; this page answers classification alone`);
  }
  if (task?.demonstrations?.length) {
    throw new Error("the task has demonstrations, which this page does not read");
  }
  open.task = task;
  at("fields").replaceChildren(
    ...(task ? fieldsOf(task.template) : []).map((name) => {
      const label = document.createElement("label");
      const area = document.createElement("textarea");
      area.name = name;
      label.append(name, area);
      return label;
    }),
  );
}
