"""``lm-eval`` asks ``seedtune serve`` and finds what ``seedtune evaluate`` finds."""

import json
from typing import Any

import pytest
from command_line import good
from seedtune.runtime import open_model
from serving import serving

lm_eval = pytest.importorskip("lm_eval", reason="needs the package lm-eval, of the extra 'test'")

WORDS = ("rain", "a cat", "the mat", "towns", "small film", "humour é", "Yes", "numbers 0 1 2")
ROWS = [
    {"text": f"{first} {second}", "label": (number * 7 + place) % 2}
    for number, first in enumerate(WORDS)
    for place, second in enumerate(WORDS)
]


def asked(url, tokenizer, task, **options):
    """Its figures of the task."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "hf:run",
            "base_url": f"{url}/completions",
            "tokenizer": str(tokenizer),
            "tokenizer_backend": "huggingface",
            "max_length": 32,
            "max_retries": 1,
        },
        tasks=["words"],
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    figures: dict[str, Any] = found["results"]["words"]
    return figures


def test_accuracy_is_that_of_evaluate(bundle, exported_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows, run, task = tmp_path / "rows.jsonl", tmp_path / "run", tmp_path / "words.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = {"kind": "classification", "template": "{text} so", "label_field": "label",
            "verbalisers": {"1": " the", "0": " and"}}  # fmt: skip
    with (
        open_model(bundle, task=spec) as model,
        model.tuner(
            run, ROWS[::2], ROWS[::8], steps=6, batch_size=8, estimator="two-point", lr=0.1, eps=0.1
        ) as tuner,
    ):
        for _ in tuner:
            pass
        tuner.tuned()
    evaluated = good("evaluate", bundle.path, "--run", run, "--data", rows)
    assert 0.2 < evaluated["accuracy"] < 0.8
    task.write_text(
        "task: words\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}} so"\ndoc_to_choice: ["and", "the"]\ndoc_to_target: label\n'
        "metric_list: [{metric: acc}]\n"
    )
    with open_model(bundle) as model, serving(model, [run]) as url:
        for batch_size in (1, 8):
            found = asked(url, exported_folder / "hf", tmp_path, batch_size=batch_size)
            assert found["acc,none"] == evaluated["accuracy"], batch_size
