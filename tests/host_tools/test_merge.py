"""``merge``: what transformers loads of a tuned bundle is what the program reads by."""

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from command_line import bad, good
from seedtune.export.load_merged import (
    ANSWERS_FILE,
    HEAD_FILE,
    MODEL,
    content_sha256,
    load_answers,
    load_merged,
)
from seedtune.runtime import open_model
from seedtune.runtime.scoring import text_part
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.scoring.parts import kinds_of, restored
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values
from tiny_model import CORPUS, write_tiny_llama

OWN_TOKENS = {"kind": "completion", "template": "{text}", "completion_field": "more", "end": False}


@pytest.fixture(scope="module")
def tuned(bundle, tmp_path_factory):
    """Values that say something else."""
    file = tmp_path_factory.mktemp("tuned") / "values.safetensors"
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(file, Values(bundle.values + np.float32(0.5) * noise), bundle, step=3)
    return file


def test_merged_values_are_those_that_transformers_loads(bundle, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = tmp_path / "far.safetensors"  # so far that more than rounding changes
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(tuned, Values(bundle.values + np.float32(3) * noise), bundle, step=3)

    source, merged = write_tiny_llama(tmp_path / "hf"), tmp_path / "merged"
    found = good("merge", bundle.path, source, merged, "--values", tuned)
    assert found["changed"] == bundle.K and found["dtype"] == "float32"
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, merged))
    with open_model(bundle) as model:
        model.load(tuned)
        values = model.values.sensitive
        for layer in bundle.layers:
            own = slice(layer.offset, layer.offset + layer.count)
            weight = other.get_submodule(layer.name).weight
            assert torch.equal(weight.flatten()[bundle.indices[own]], torch.tensor(values[own]))
            weight.data.view(-1)[bundle.indices[own]] = one.get_submodule(
                layer.name
            ).weight.flatten()[bundle.indices[own]]
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
        ), "nothing else may differ"

    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in CORPUS]
    rows = [{"text": text, "more": more[:12]} for text, more in halves]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    change = -mean_losses(one, tokenizer, rows)
    change += mean_losses(AutoModelForCausalLM.from_pretrained(merged), tokenizer, rows)
    with open_model(bundle, task=OWN_TOKENS) as model:
        ours = [-model.evaluate([row]).loss for row in rows]
        model.load(tuned)
        ours = [model.evaluate([row]).loss + before for row, before in zip(rows, ours, strict=True)]
    # int4 and int8 lie between the two; what tuning changed is larger.
    assert np.abs(np.array(ours) - change).max() < np.abs(change).max() / 2
    assert np.corrcoef(ours, change)[0, 1] > 0.8


def mean_losses(net, tokenizer, rows):
    """As transformers computes them, float64 ``[rows]``."""
    import torch

    found = []
    for row in rows:
        tokens = tokenizer(row["text"] + row["more"])["input_ids"]
        ends = tokenizer(row["text"] + row["more"], return_offsets_mapping=True)["offset_mapping"]
        start = next(i for i, (_, end) in enumerate(ends) if end > len(row["text"]))
        with torch.no_grad():
            logp = net(torch.tensor([tokens])).logits.log_softmax(-1)[0]
        picked = [-float(logp[i - 1, tokens[i]]) for i in range(start, len(tokens))]
        found.append(np.mean(picked))
    return np.array(found)


@pytest.fixture(scope="module")
def headed(bundle, tmp_path_factory):
    """Values with a text head that says something else."""
    assert bundle.text_head is not None
    file = tmp_path_factory.mktemp("headed") / "values.safetensors"
    outputs, inputs = bundle.text_head.outputs, bundle.text_head.inputs
    head = np.random.default_rng(1).standard_normal(outputs * inputs, np.float32) / 10
    part = restored(kinds_of(bundle), text_part.describe(outputs, inputs, 0, 0), head)
    export_values(file, Values(bundle.values.astype(np.float32), part), bundle, step=3)
    return file


@pytest.fixture(scope="module")
def merged(bundle, headed, tmp_path_factory):
    """A checkpoint with its head."""
    folder = tmp_path_factory.mktemp("merged")
    source = write_tiny_llama(folder / "hf")
    found = good("merge", bundle.path, source, folder / "out", "--values", headed)
    assert found["head"] == str(folder / "out" / HEAD_FILE)
    return folder / "out"


def test_a_merged_text_head_is_what_the_program_reads_by(bundle, headed, merged):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in CORPUS]
    rows = [{"text": text, "more": more[:12]} for text, more in halves]
    tokenizer = AutoTokenizer.from_pretrained(merged / MODEL)
    change = mean_losses(load_merged(merged), tokenizer, rows)
    change -= mean_losses(AutoModelForCausalLM.from_pretrained(merged / MODEL), tokenizer, rows)
    with open_model(bundle, task=OWN_TOKENS) as model:
        ours = [-model.evaluate([row]).loss for row in rows]
        model.load(headed)
        ours = [model.evaluate([row]).loss + before for row, before in zip(rows, ours, strict=True)]
    assert np.abs(change).max() > 0.1
    # int4 and int8 lie between the two; what the head changes is larger.
    assert np.abs(np.array(ours) - change).max() < np.abs(change).max() / 4


def test_a_merged_text_head_is_added_as_its_file_says(merged):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    adapter = load_file(merged / HEAD_FILE)["adapter"]
    plain, moved = AutoModelForCausalLM.from_pretrained(merged / MODEL), load_merged(merged)
    tokens = torch.arange(10, 24).reshape(2, 7)
    tapped: list[Any] = []
    for block in plain.model.layers:  # two blocks: 2/3 of the way up and the end are 1 and 2
        block.register_forward_hook(lambda block, given, out: tapped.append(out))
    with torch.no_grad():
        read = plain.model(tokens).last_hidden_state
        states = [x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for x in tapped]
        wanted = plain.lm_head(read + torch.cat(states, -1) @ adapter.T)
        torch.testing.assert_close(moved(tokens).logits, wanted)
        last = moved(tokens, logits_to_keep=1).logits
        torch.testing.assert_close(last, wanted[:, -1:])
        assert not torch.allclose(plain(tokens).logits, wanted, atol=0.1)
        begun = moved(tokens[:, :4], use_cache=True)
        rest = moved(tokens[:, 4:], past_key_values=begun.past_key_values)
        torch.testing.assert_close(rest.logits, wanted[:, 4:])


def test_merged_terms_stand_in_the_matrices_that_they_were_learned_beside(bundle, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = TextHead.of(bundle)
    assert text is not None and text.terms is not None
    drawn = np.random.default_rng(2).standard_normal(text.terms.entries, np.float32) / 2
    own = np.concatenate([np.zeros(text.entries, np.float32), drawn])
    told = text_part.describe(*text.shape, 0, text.terms.entries)
    values = Values(bundle.values.astype(np.float32), restored(kinds_of(bundle), told, own))
    file, source = tmp_path / "values.safetensors", write_tiny_llama(tmp_path / "hf")
    export_values(file, values, bundle, step=3)
    good("merge", bundle.path, source, tmp_path / "out", "--values", file)

    one, other = map(AutoModelForCausalLM.from_pretrained, (source, tmp_path / "out" / MODEL))
    gate_up, down = text.terms.part.inputs[0], text.terms.part.inner[0]
    terms = text.terms.terms(drawn)
    wanted = {
        f"model.layers.1.mlp.{name}_proj.weight": term @ directions
        for name, term, directions in zip(
            ("gate", "up", "down"), terms, (gate_up, gate_up, down), strict=True
        )
    }
    for (name, plain), moved in zip(one.named_parameters(), other.parameters(), strict=True):
        apart = (moved - plain).detach().numpy()
        # Sensitive entries alone are rounded, to fp16.
        np.testing.assert_allclose(apart, wanted.get(name, np.zeros(1)) + 0 * apart, atol=1e-3)
    assert all(np.abs(each).max() > 0.05 for each in wanted.values())

    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in CORPUS]
    rows = [{"text": text, "more": more[:12]} for text, more in halves]
    tokenizer = AutoTokenizer.from_pretrained(source)
    change = mean_losses(load_merged(tmp_path / "out"), tokenizer, rows)
    change -= mean_losses(one, tokenizer, rows)
    with open_model(bundle, task=OWN_TOKENS) as model:
        ours = [-model.evaluate([row]).loss for row in rows]
        model.load(file)
        ours = [model.evaluate([row]).loss + before for row, before in zip(rows, ours, strict=True)]
    assert np.abs(change).max() > 0.1
    # int4 and int8 lie between the two; what the terms change is larger.
    assert np.abs(np.array(ours) - change).max() < np.abs(change).max() / 2


def test_the_copied_loader_works_by_itself(merged):
    script = (
        "import torch, load_merged as it, sys\n"
        "assert not any(name.startswith('seedtune') for name in sys.modules)\n"
        "out = it.load_merged('.')(torch.arange(9)[None]).logits\n"
        "print(float(out.double().sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=merged, capture_output=True, text=True, check=True
    )
    import torch

    with torch.no_grad():
        wanted = float(load_merged(merged)(torch.arange(9)[None]).logits.double().sum())
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(wanted, rel=1e-5)


def test_what_the_loader_refuses(merged, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(merged / HEAD_FILE, "pt") as opened:
        metadata, adapter = opened.metadata(), opened.get_tensor("adapter")

    def refused(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(merged, folder)
        change(folder / HEAD_FILE)
        with pytest.raises(ValueError) as raised:
            load_merged(folder)
        assert "\n" not in str(raised.value) and HEAD_FILE in str(raised.value)
        return str(raised.value)

    assert "is missing" in refused(lambda file: file.unlink())
    assert "damaged" in refused(lambda file: file.write_bytes(file.read_bytes()[:-9]))
    assert "SHA-256" in refused(lambda file: save_file({"adapter": adapter + 1}, file, metadata))
    assert "no head" in refused(lambda file: save_file({"adapter": adapter}, file))
    wide = adapter.new_zeros(adapter.shape[0], 3 * adapter.shape[1] // 2)
    about = '{"blocks": [1, 2, 3]}'
    other = {**metadata, "about": about, "sha256": content_sha256(wide, about)}
    assert "of another model" in refused(lambda file: save_file({"adapter": wide}, file, other))


def test_what_merge_refuses(bundle, tuned, tmp_path):
    source = write_tiny_llama(tmp_path / "hf")
    assert "give what to merge" in bad(1, "merge", bundle.path, source, tmp_path / "out")
    over = bad(1, "merge", bundle.path, source, source, "--values", tuned)
    assert "which is read" in over
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    taken = bad(8, "merge", bundle.path, source, tmp_path / "taken", "--values", tuned)
    assert "exists and is not empty" in taken
    from safetensors.torch import load_file, save_file

    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    other = bad(8, "merge", bundle.path, source, tmp_path / "out", "--values", tuned)
    assert "is another model than the one" in other and not (tmp_path / "out").exists()


def test_a_folder_with_a_head_is_no_checkpoint_and_says_what_it_is(merged):
    from transformers import AutoModelForCausalLM

    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(merged)
    told = (merged / "README.md").read_text()
    assert "load_merged(" in told and MODEL in told and "without it" in told


LABELS = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "said",
    "verbalisers": {"good": " great", "bad": " terrible", "odd": " dull"},
    "demonstrations": [{"text": "film", "said": "odd"}],
}
CHOICES = {
    "kind": "multiple_choice",
    "template": "{text}",
    "choice_fields": ["b", "a", "c"],
    "label_field": "said",
}
ROWS = [
    {"text": "the plot", "b": "was good", "a": " bad", "c": "so dull a plot"},
    {"text": "the actors were", "b": "great and good", "a": "I left", "c": " terrible"},
    {"text": "a dull plot so I", "b": "film", "a": "actors were", "c": "plot"},
]


@pytest.mark.parametrize("task", [LABELS, CHOICES], ids=["labels", "choices"])
def test_a_merged_readout_answers_as_the_bundle_does(bundle, tmp_path, task):
    generator, rows = np.random.default_rng(2), 3 if task is LABELS else 1
    weights = generator.standard_normal((rows, bundle.hidden_width + 1), np.float32) / 10
    share = np.array([-0.4], np.float32)
    file, labels = tmp_path / "values.safetensors", tuple(LABELS["verbalisers"])
    head = AnswerHead(
        labels if task is LABELS else (), bundle.hidden_width, np.append(weights, share)
    )
    export_values(file, Values(bundle.values.astype(np.float32), head), bundle, step=1)
    (tmp_path / "task.json").write_text(json.dumps(task))
    source, out = write_tiny_llama(tmp_path / "hf"), tmp_path / "out"
    found = good("merge", bundle.path, source, out, "--values", file,
                 "--task", tmp_path / "task.json")  # fmt: skip
    assert (
        found["head"] == str(out / ANSWERS_FILE)
        and "load_answers" in (out / "README.md").read_text()
    )
    answers = load_answers(out)
    theirs = [answers(row) for row in ROWS]
    with open_model(bundle, task=task) as model:
        before = [one.scores for one in model.predict(ROWS)]
        model.load(file)
        ours = [one.scores for one in model.predict(ROWS)]

    def logits(found):
        assert all(list(one) == list(ours[0]) for one in found)
        shares = np.log([list(one.values()) for one in found])
        return shares - shares.mean(axis=1, keepdims=True)

    moved = logits(ours) - logits(before)
    assert np.abs(moved).max() > 0.3
    # int4 and int8 lie between the two; what the answer head changes is larger.
    assert np.abs(logits(theirs) - logits(ours)).max() < np.abs(moved).max() / 4


def test_a_readout_without_its_task_is_refused(bundle, tmp_path):
    file = tmp_path / "values.safetensors"
    more = np.ones(3 * (bundle.hidden_width + 1) + 1, np.float32)
    head = AnswerHead(("b", "c", "a"), bundle.hidden_width, more)
    export_values(file, Values(bundle.values.astype(np.float32), head), bundle, step=1)
    source = write_tiny_llama(tmp_path / "hf")
    assert "the bundle has no task" in bad(
        3, "merge", bundle.path, source, tmp_path / "out", "--values", file
    )
    assert not (tmp_path / "out").exists()
