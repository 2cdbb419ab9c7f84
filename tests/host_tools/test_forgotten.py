"""What a run forgot stands nowhere in its folder, in no encoding, whatever was killed before."""

import functools
import json
import shutil
import time

import numpy as np
import pytest
from faults import killed_at_call
from seedtune.host_tools.commands.held_out import HeldOut
from seedtune.host_tools.commands.outcome import outcome_of
from seedtune.host_tools.reports.curves import run_curves
from seedtune.host_tools.reports.page import write_page
from seedtune.runtime import open_model
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal import run_folder
from seedtune.runtime.journal.file import JournalWriter, read_journal
from seedtune.runtime.journal.operations import branch, rewind
from seedtune.runtime.journal.run_folder import OUTCOME_FILE, REPORT_FILE, VALUES_FILE
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import history_of, replay
from seedtune.runtime.scoring.values_file import load_values
from seedtune.runtime.tasks.rows import Row
from text_bundle import SPEC, TextEngine, write_text_bundle

ROWS = [
    {"before": "my PIN", "reply": " is Zoë 4711"},
    {"before": "the actors", "reply": " were bad so I left because the plot"},
]
STEPS = 80


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("bundle")
    write_text_bundle(folder / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEDTUNE_CACHE", str(cache))
        with open_model(folder / "b", task=SPEC) as opened:
            opened._engine = TextEngine(opened.bundle)
            yield opened


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """A run with a snapshot behind it, whose end was never saved."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    with tuner(model, folder) as live:
        list(live)
    compact(folder, Start.of(model.bundle))
    return folder


@pytest.fixture(scope="module")
def saved(model, tuned):
    """The same with all that can be made of it."""
    folder = shutil.copytree(tuned, tuned.with_name("saved"))
    save(model, folder)
    return folder


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def tuner(model, folder, **settings):
    given = settings or {"lr": 0.01, "steps": STEPS, "eval_every": 20}
    return model.tuner(folder, ROWS * 3, ROWS, **given)


def save(model, folder):
    """What ``tune`` does at its end, and ``report``."""
    rows = [Row(row, f"row {number}") for number, row in enumerate(ROWS)]
    held_out = HeldOut(model.encode(ROWS), model.encode(ROWS), rows)
    original = model.values
    with tuner(model, folder) as live:
        outcome_of(
            live, model, held_out, 1.0,
            on_long="error", memory_limit=None, progress=lambda done, of: None,
        )  # fmt: skip
    model.values = original
    write_page(run_curves(folder), folder, folder / REPORT_FILE, {})


def again(saved, run):
    shutil.rmtree(run, ignore_errors=True)
    return shutil.copytree(saved, run)


@pytest.fixture(scope="module")
def traces(model):
    """Three words of the rows in a row, as bytes, and what they are, in every form that one of
    our files, or numpy's, gives to words."""
    found: dict[bytes, str] = {}
    for row, example in zip(ROWS, model.encode(ROWS), strict=True):
        words = (row["before"] + row["reply"]).split()
        for three in zip(words, words[1:], words[2:], strict=False):
            text = " ".join(three)
            for shown in (text, json.dumps(text)[1:-1]):
                for encoding in ("utf-8", "utf-16-le"):
                    found[shown.encode(encoding)] = f"{text!r} as {encoding}"
        said = np.asarray(example.tokens, np.int64).reshape(-1)
        for place in range(len(said) - 2):
            tokens = said[place : place + 3]
            for numbers in (tokens, tokens + 1, -1 - tokens):  # the last two: in a memory
                packed = numbers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
                found[packed.tobytes()] = f"{numbers} in three bytes each"
                for dtype in ("<f4", "<i8", "<i4", "<f8"):
                    found[numbers.astype(dtype).tobytes()] = f"{numbers} as {dtype}"
            found[tokens.astype("<u2").tobytes()] = f"{tokens} as <u2"
            for comma in (", ", ","):
                found[comma.join(map(str, tokens)).encode()] = f"{tokens} in JSON"
    return found


@pytest.fixture(scope="module")
def words_left(traces):
    """Where words of the rows stand in some folders, and how."""

    @functools.cache  # most files are the same after every kill
    def found(data):
        return [how for what, how in traces.items() if what in data]

    def found_in(*folders):
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        return [f"{file}: {how}" for file in files for how in found(file.read_bytes())]

    return found_in


def each_kill(work, prepare):
    """Kills of ``work`` before each of its calls of the file system."""
    number = 0
    prepare()
    while killed_at_call(lambda: work(), number, before=True, opening=True):
        yield number
        number += 1
        prepare()
    assert number > 8


def consistent(model, run):
    """Whether what was made of the run tells of the run that the journal holds."""
    done = replay(run, Start.of(model.bundle))
    if (run / OUTCOME_FILE).exists():
        outcome = json.loads((run / OUTCOME_FILE).read_text())
        if outcome["steps"] != done.history.steps:
            return False
    if (run / VALUES_FILE).exists():
        saved = load_values(run / VALUES_FILE, model.bundle, model._start.kinds)
        half = done.best_values.sensitive.astype(np.float16)
        ours, theirs = saved.part, done.best_values.part
        assert ours is not None and theirs is not None
        if not ((saved.sensitive == half).all() and (ours.own == theirs.own).all()):
            return False
    return True


def test_the_words_are_found_where_they_are(saved, words_left):
    """In each file that may hold them, and nowhere else."""
    left = "\n".join(words_left(saved))
    (snapshot,) = saved.glob("snapshot-*")
    for name in ("journal.bin", snapshot.name, VALUES_FILE, OUTCOME_FILE, REPORT_FILE):
        assert f"{name}: " in left
    known = {"journal.lock", "metrics.jsonl", "journal.bin", snapshot.name, *run_folder.DERIVED}
    assert {file.name for file in saved.iterdir()} <= known
    assert "metrics" not in left and "lock" not in left


def test_a_run_forgets_all_of_it(model, saved, run, cache, words_left):
    again(saved, run)
    model.forget(run)
    assert words_left(run, cache) == []
    assert (run / VALUES_FILE).exists() and not (run / OUTCOME_FILE).exists()
    assert consistent(model, run)


def learned_of(model, run):
    return [each.text for each in model.remembered(run)]


def test_a_run_shows_what_it_remembers(model, saved, run):
    again(saved, run)
    found = model.remembered(run)
    for row in ROWS:
        assert any(row["reply"] in each.text for each in found)
    assert [each.step for each in found] == sorted((each.step for each in found), reverse=True)
    assert found[0].step == STEPS and all(each.times > 1 and each.words > 3 for each in found)
    now = time.time()
    assert all(each.learned is not None and now - 600 < each.learned <= now for each in found)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_single_text_is_forgotten_and_the_other_stays(
    model, saved, run, cache, words_left,
    traces, kept
):  # fmt: skip
    again(saved, run)
    model.forget(run, texts=[ROWS[1 - kept]["reply"].upper().replace(" ", "  ")])
    left = "\n".join(words_left(run, cache))
    own, gone = (traces_of(model, ROWS[number]) for number in (kept, 1 - kept))
    assert any(what in left for what in own - gone), "the other text is still known"
    assert not any(what in left for what in gone - own)
    assert all(ROWS[kept]["reply"] in text for text in learned_of(model, run))
    assert consistent(model, run) and read_journal(run).header.train_sha256 == ""
    with tuner(model, run, steps=STEPS + 2, eval_every=20) as live:  # goes on remembering
        list(live)
    assert any(ROWS[1 - kept]["reply"] in text for text in learned_of(model, run))
    steps = {each.text: each.step for each in model.remembered(run)}
    assert max(steps.values()) == STEPS + 2


def traces_of(model, row):
    """What ``words_left`` says of three tokens of a row in a memory, or in text."""
    (example,) = model.encode([row])
    said = np.asarray(example.tokens, np.int64).reshape(-1)
    words = (row["before"] + row["reply"]).split()
    found = {repr(" ".join(three)) for three in zip(words, words[1:], words[2:], strict=False)}
    for place in range(len(said) - 2):
        found |= {f"{said[place : place + 3] + 1} as <f4"}
    return found


def test_what_was_learned_since_then_is_forgotten(model, saved, run):
    """Steps from 61 on are of a day later; what is older stays, with its time."""
    again(saved, run)
    file, late = run / run_folder.METRICS_FILE, 2_000_000_000
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["time"] = late if line["step"] > 60 else late - 86_400
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(JournalError, match="keeps no words of texts that it learned since then"):
        model.forget(run, since=late + 1)
    model.forget(run, since=late - 60)
    left = model.remembered(run)
    assert left and {each.step for each in left} == {60}
    assert {each.learned for each in left} == {late - 86_400}
    file.unlink()  # not known when: all of it may have been
    model.forget(run, since=late + 1)
    assert model.remembered(run) == []


def test_a_text_that_is_not_there_is_refused_and_nothing_changes(model, saved, run):
    again(saved, run)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    for text in ("nobody said this", "", "  "):
        with pytest.raises(JournalError, match="no text that the run keeps words of holds"):
            model.forget(run, texts=[ROWS[0]["reply"], text])
    assert before == {file.name: file.read_bytes() for file in run.iterdir()}


def test_what_a_killed_save_left_is_forgotten(model, tuned, run, cache, words_left):
    met = 0
    for number in each_kill(lambda: save(model, run), lambda: again(tuned, run)):
        met += bool(words_left(*run.glob(".*")))
        model.forget(run)
        assert words_left(run, cache) == [], number
    assert met  # a kill in the middle leaves words in a workplace


def test_forgetting_that_was_killed_is_taken_up_again(model, saved, run, cache, words_left):
    forgot = 0
    for number in each_kill(lambda: model.forget(run), lambda: again(saved, run)):
        assert consistent(model, run)
        if read_journal(run).header.train_sha256 == "":
            # The journal says that it did: whoever opens it next sees to it.
            forgot += 1
            JournalWriter.open(run)[0].close()
            assert words_left(run, cache) == [], number
        model.forget(run)
        assert words_left(run, cache) == [], number
    assert forgot


def test_a_rewind_that_was_killed_leaves_nothing_that_contradicts_the_journal(
    model, saved, run, cache, words_left
):
    steps = set()
    for number in each_kill(lambda: rewind(run, STEPS - 10), lambda: again(saved, run)):
        steps.add(history_of(read_journal(run)).steps)
        assert consistent(model, run), number
    assert steps == {STEPS - 10, STEPS}
    rewind(run, STEPS - 10)
    assert not any((run / name).exists() for name in run_folder.DERIVED)
    metrics = (run / run_folder.METRICS_FILE).read_text()
    assert f'"step":{STEPS - 10},' in metrics and f'"step":{STEPS - 9},' not in metrics
    model.forget(run)
    assert words_left(run, cache) == []


def test_a_rewind_to_where_the_run_is_leaves_all_as_it_is(saved, run):
    again(saved, run)
    with_end = {file.name for file in run.iterdir()}
    rewind(run, None)
    assert {file.name for file in run.iterdir()} == with_end


def test_a_branch_takes_nothing_along_that_tells_of_the_source(model, saved, run):
    branch(saved, run, step=STEPS - 10)
    assert not {file.name for file in run.iterdir()} & set(run_folder.DERIVED)


def test_forgetting_waits_for_whoever_writes_there(model, saved, run):
    from seedtune.runtime.files import replacing

    again(saved, run)
    with replacing(run / REPORT_FILE) as page:
        page.write_text("of another process")
        with pytest.raises(JournalError, match="another process is writing here"):
            model.forget(run)
    model.forget(run)
    assert not (run / REPORT_FILE).exists()
