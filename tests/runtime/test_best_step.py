"""Which evaluated step ships: by metric, but for differences that are within its standard error."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from journal_bytes import header
from seedtune.runtime.journal.format import Evaluation, Step
from seedtune.runtime.journal.history import History

REPLAY = Path(__file__).parents[2] / "examples/browser/replay.js"
FOUND = {
    "clearly lower loss": ([(0.6, 0.50), (0.45, 0.85), (0.3, 0.84), (0.5, 0.855)], 2),
    "beyond the error": ([(0.6, 0.50), (0.3, 0.80), (0.45, 0.85), (0.5, 0.84)], 2),
    "no walk downwards": ([(0.6, 0.86), (0.5, 0.845), (0.4, 0.83), (0.3, 0.81)], 1),
    "the earliest of equals": ([(0.6, 0.5), (0.4, 0.8), (0.4, 0.8)], 1),
    "all right": ([(0.6, 0.5), (0.4, 0.9968), (0.5, 1.0)], 1),
    "no share, of a crafted journal": ([(0.6, 0.5), (0.4, 1e38)], 1),
}


def history(rows):
    return History(header(metric={"name": "accuracy", "higher_is_better": True, "rows": rows}), "j")


def best_of(found, history):
    for number, (loss, metric) in enumerate(found):
        if number:
            history.add(Step((0.0,)))
        history.add(Evaluation(loss, metric))
    assert history.best is not None
    return history.best.step


@pytest.mark.parametrize("case", FOUND)
def test_of_300_rows(case):
    found, wanted = FOUND[case]
    assert best_of(found, history(300)) == wanted


def test_of_many_rows_or_without_their_number_every_difference_counts():
    found, _ = FOUND["clearly lower loss"]
    assert best_of(found, history(None)) == 3
    assert best_of(found, history(10**6)) == 3


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("case", FOUND)
def test_the_browser_chooses_the_same(case, tmp_path):
    found, wanted = FOUND[case]
    about = {"metric": {"higher_is_better": True, "rows": 300}}
    records = []
    for number, (loss, metric) in enumerate(found):
        records += [{"kind": "step"}] * bool(number)
        records.append({"kind": "evaluation", "loss": loss, "metric": metric})
    code = REPLAY.read_text(encoding="utf-8")
    code = code[code.index("function bestEvaluation") : code.index("async function openSnapshot")]
    asked = f"{code}\nconsole.log(bestEvaluation({json.dumps(about)}, {json.dumps(records)}).step)"
    script = tmp_path / "best.js"
    script.write_text(asked)
    told = subprocess.run(["node", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) == wanted
