"""The page in a browser replays to the library's bits and answers as its ONNX engine does."""

import json
import shutil
from typing import Any

import pytest
from browser_page import PAGE, open_page
from command_line import good, write_rows
from doc_pages import ROOT
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.start import Start
from seedtune.runtime.model import open_model
from tiny_bundle import TASK, with_task

VECTORS = json.loads((ROOT / "tests" / "vectors" / "noise.json").read_text())
RUNS = {
    "plain": ("--steps", 6),
    "seeds": ("--seeds", 2, "--steps", 7, "--seed", 2**64 - 1),
    "linear": ("--schedule", "linear", "--steps", 8, "--eval-every", 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("page") / "served") as found:
        yield found
        seen = found.seen()
        assert seen["errors"] == []
        assert [each for each in seen["asked"] if not each.startswith(found.address)] == []


@pytest.fixture(scope="module")
def tasked(reach, tmp_path_factory):
    """The tiny model with a task, as a folder."""
    folder = tmp_path_factory.mktemp("browser") / "b"
    with_task(reach, folder, TASK)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", lengths=1)


def tuned(bundle, rows, run, *how):
    """A run of the page's estimator, or of another that ``how`` names."""
    data = ("--train", rows, "--data", rows, "--engine", "onnxruntime", "--threads", 1)
    named = ("--estimator", "two-point", "--lr", "1e-3", "--eps", "1e-3")
    good("tune", bundle.path, run, *data, *(() if "--estimator" in how else named), *how)
    return run


def test_the_noise_is_the_published_one(page):
    found = page.module(
        "noise.js",
        """
        const { sha256 } = await import("./files.js");
        const answers = [];
        for (const { count, seed, step, probe } of given) {
          const z = module.signs(count, seed, step, probe);
          const words = Array.from(module.words(2, seed, step, probe).slice(0, 2));
          answers.push({
            words: words.map((word) => word.toString(16).padStart(16, "0")),
            first: Array.from(z.slice(0, 32)),
            sha256: await sha256(z),
          });
        }
        return answers;
        """,
        VECTORS["vectors"],
    )
    assert len(found) == len(VECTORS["vectors"]) > 5
    for answer, vector in zip(found, VECTORS["vectors"], strict=True):
        assert answer == {name: vector[name] for name in answer}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_replays_to_the_same_bits_and_answers(page, tasked, rows, tmp_path, name):
    run = tuned(tasked, rows, tmp_path / "run", *RUNS[name])
    if name == "linear":  # goes on with other settings, which the journal notes
        tuned(tasked, rows, run, *RUNS[name], "--steps", 11, "--lr", "5e-4", "--allow-changes")
    known = good("journal", "verify", run, tasked.path)
    page.open("bundle", tasked.path)
    with open_model(tasked, engine="onnxruntime", threads=1) as model:
        before = model.predict({"text": "a dull film"}).scores
        answers = page.ask(text="a dull film")
        for label, share in before.items():
            assert answers[label][0] == pytest.approx(share, abs=2e-4)
        said = page.open("run", run)
        assert said.startswith(f"{known['steps']} steps, values {known['sha256']};")
        model.load(run)
        assert said.endswith(f"with those of step {model.step}")
        for text in ("a dull film", "Größe & <b>\n I’m", "東京", "  two  spaces "):
            wanted = model.predict({"text": text}).scores
            answers = page.ask(text=text)
            assert answers.keys() == wanted.keys()
            for label, share in wanted.items():
                assert answers[label][0] == pytest.approx(share, abs=2e-4)
                assert answers[label][1] < 0
    best = page.module("replay.js", _BEST, _given(run, tasked))
    assert best == known["best_sha256"]


_BEST = """
const { readJournal } = await import("./journal.js");
const { sha256, floatTensors } = await import("./files.js");
const bytes = (hex) => Uint8Array.from(hex.match(/../g), (each) => parseInt(each, 16)).buffer;
const { values } = floatTensors(bytes(given.values), "values");
const journal = readJournal(bytes(given.journal), "journal");
return sha256((await module.replay(journal, values, given.bundle, null)).best);
"""


def _given(run, bundle):
    return {
        "journal": (run / "journal.bin").read_bytes().hex(),
        "values": (bundle.path / "values.safetensors").read_bytes().hex(),
        "bundle": bundle.sha256,
    }


def test_a_compacted_run(page, tasked, rows, tmp_path):
    run = tuned(tasked, rows, tmp_path / "run", "--steps", 80, "--eval-every", 5)
    known = good("journal", "verify", run, tasked.path)
    compact(run, Start.of(tasked))
    (snapshot,) = run.glob("snapshot-*")
    page.open("bundle", tasked.path)
    said = page.open("run", run)
    assert said.startswith(f"80 steps, values {known['sha256']};")
    assert said.endswith(f"step {known['best']['step']}")
    data = snapshot.read_bytes()
    snapshot.write_bytes(data[:-4] + bytes(4))
    assert "is not the one that the journal was cut at" in page.refuses("run", run)
    snapshot.unlink()
    assert page.refuses("run", run) == f"{snapshot.name} is missing; open the folder of a run"


def test_a_torn_end_is_left_out_and_damage_refused(page, tasked, rows, tmp_path):
    run = tuned(tasked, rows, tmp_path / "run", "--steps", 6)
    file = run / "journal.bin"
    data = file.read_bytes()
    page.open("bundle", tasked.path)
    for torn in (data[:-3], data[:-3] + bytes(9), data + b"\x01"):
        file.write_bytes(torn)
        known = good("journal", "verify", run, tasked.path)
        assert f"{known['steps']} steps, values {known['sha256']}" in page.open("run", run)
    changed = bytearray(data)
    changed[-60] ^= 1
    file.write_bytes(changed)
    assert "damaged at byte" in page.refuses("run", run)
    changed = bytearray(data)
    changed[40] ^= 1
    file.write_bytes(changed)
    assert "its header is damaged; copy the run again" in page.refuses("run", run)
    file.write_bytes(b"no journal at all")
    assert page.refuses("run", run) == "journal.bin: not a journal"


def test_what_the_page_does_not_replay(page, tasked, rows, tmp_path):
    page.open("bundle", tasked.path)
    run = tuned(tasked, rows, tmp_path / "readout", "--estimator", "readout", "--steps", 2)
    assert page.refuses("run", run) == (
        "journal: a run of the estimator readout; this page replays two-point: tune with "
        "--estimator two-point, or use 'seedtune predict'"
    )
    other = tmp_path / "other"
    with_task(tasked, other, {**TASK, "template": "{text} So it was"})
    run = tuned(open_bundle(other), rows, tmp_path / "of_other", "--steps", 2)
    assert "open the bundle that it is of" in page.refuses("run", run)
    shown = tmp_path / "shown"
    with_task(tasked, shown, {**TASK, "demonstrations": [{"text": "good", "label": 1}]})
    told = page.refuses("bundle", shown)
    assert told == "the task has demonstrations, which this page does not read"
    page.open("bundle", tasked.path)
    # After all that it still answers.
    assert set(page.ask(text="good")) == {"0", "1"}
    told = page.refuses_to_answer(text="very " * 80)
    assert "tokens, at most 32; shorten it" in told


def test_bundles_that_are_refused(page, tasked, bundle, tmp_path):
    assert "export it with --to onnx" in page.refuses("bundle", bundle.path)
    copy = tmp_path / "b"
    shutil.copytree(tasked.path, copy)
    for name in ("program.onnx", "program.pte", "values.safetensors", "tokenizer.json"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-2] + b"??")
        assert page.refuses("bundle", copy) == (
            f"{name}: truncated or altered; copy the bundle again"
        )
        (copy / name).write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["name"] = "another"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert page.refuses("bundle", copy) == "manifest.json: altered; copy the bundle again"
    (copy / "manifest.json").unlink()
    assert "manifest.json is missing" in page.refuses("bundle", copy)
    assert page.refuses_to_answer() == "open a bundle first"


def test_numbers_of_a_manifest_stay_as_written(page, tmp_path):
    content: dict[str, Any] = {
        "b": [1e-05, 1.0, 2**64 - 1, 0.1, 1e22], "a": {"10": "é\u007f\U0001f600", "9": None},
        "sha256": "x", "c": 'quote " and \\ \n', "é": True,
    }  # fmt: skip
    found = page.module(
        "files.js", 'return module.canonicalJson(given, "sha256")', json.dumps(content, indent=1)
    )
    del content["sha256"]
    assert found == json.dumps(content, sort_keys=True, separators=(",", ":"))


@pytest.mark.slow
def test_the_page_tokenises_as_the_library(page, smollm2):
    from seedtune.host_tools.data.named_tasks import load_task
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(smollm2.tokenizer_json.decode())
    texts = [row["text"] + " It was great" for row in load_task("sst2").test[:400]]
    found = page.module(
        "model.js",
        """
        const model = new module.Model({ tokenizer: JSON.parse(given[0]) }, null);
        return given[1].map((text) => Array.from(model.ids(text)));
        """,
        [smollm2.tokenizer_json.decode(), texts],
    )
    assert found == [each.ids for each in known.encode_batch(texts)]


def test_the_page_is_small_and_keeps_to_its_server():
    files = [file for file in PAGE.iterdir() if file.suffix in (".js", ".html")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 800
    lock = json.loads((PAGE / "package-lock.json").read_text())
    for name, package in lock["packages"].items():
        assert not name or package["integrity"].startswith("sha512-"), name
    assert "default-src 'self'" in (PAGE / "index.html").read_text()
