"""Exporting to a bundle: what goes in, what is refused, and the trap of empty matrices."""

import numpy as np
import pytest
import torch
from block_states import block_states, mean_so_far
from exported_bundle import request
from profile_files import save_profile
from seedtune.export.export import export_model
from seedtune.export.profile.fisher import compute_profile
from seedtune.export.program.block_tap import tapped_blocks
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.program.sensitive_linear import SensitiveLinear, input_groups
from seedtune.export.text.make_frame import find_words, read_norm
from seedtune.runtime.bundle import Bounds, WordsPlace, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.executorch_binding import ExecutorchBinding
from seedtune.runtime.errors import EngineError, ModelError
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.text_head import Observed, TextHead
from seedtune.runtime.scoring.text_part import TextPart, tokens_of
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import encode_rows, task_for

BOUNDS = Bounds(probes=2, rows=2, length=16, positions=2, candidates=2)
CALIBRATION = np.arange(64).reshape(4, 16)
DOWN = "model.layers.1.mlp.down_proj"
Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def test_bundle_holds_the_models_own_values(bundle, tiny_llama):
    bundle = open_bundle(bundle.path)
    assert bundle.K == len(bundle.values) == sum(layer.count for layer in bundle.layers)
    assert bundle.manifest["quantisation"]["rounding"] == "gptq"
    for layer in bundle.layers:
        weight = tiny_llama.model.get_submodule(layer.name).weight.numpy().reshape(-1)
        own = slice(layer.offset, layer.offset + layer.count)
        assert np.array_equal(bundle.values[own], weight[bundle.indices[own]].astype(np.float16))


@pytest.mark.parametrize(("rows", "length"), [(3, 20), (20, 12)])  # bounds: 8 rows of 32
def test_the_hidden_states_are_the_models_own_but_for_int4(bundle, tiny_llama, rows, length):
    blocks, means = tapped_blocks(2)
    assert (list(bundle.hidden_blocks), list(bundle.mean_blocks)) == (blocks, means)
    states = [(below, False) for below in blocks] + [(below, True) for below in means]
    engine = open_engine(bundle, name="executorch-binding")
    batch, values = request(bundle, rows=rows, length=length, scored=9, choices=2, probes=2)
    values[:] = bundle.values
    hidden = engine.score(batch, values).hidden
    assert hidden.dtype == np.float32 and hidden.shape == (2, 9, 32 * len(states))
    np.testing.assert_array_equal(hidden[0], hidden[1])
    own = block_states(tiny_llama.model, torch.from_numpy(batch.tokens))
    for (below, mean), part in zip(states, np.split(hidden[0], len(states), axis=1), strict=True):
        apart = []
        for state in own:
            flat = (mean_so_far(state) if mean else state).flatten(0, 1)[batch.positions].numpy()
            wanted = flat / np.sqrt(np.square(flat).mean(axis=1, keepdims=True))
            apart.append(np.sqrt(np.square(part - wanted).mean()))
        nearest, second = np.argsort(apart)[:2]
        assert nearest == below and apart[nearest] < min(0.2, apart[second] / 2), apart


def test_the_frame_of_a_text_head_is_the_models_own(bundle, tiny_llama):
    """Words, norm, bases and generic text, against what transformers and torch make of them."""
    assert bundle.text_head is not None and bundle.text_head.softcap is None
    text, model = TextHead.of(bundle), tiny_llama.model
    assert text.shape == (32, 64) and len(text.frame.states) == 16 * 32
    words = text.words.vectors(slice(None))
    head = model.get_output_embeddings().weight.detach().numpy()
    assert 0 < np.abs(words - head).mean() < 0.1 * np.abs(head).mean()
    np.testing.assert_allclose(text.frame.weight, model.model.norm.weight.numpy(), rtol=1e-3)
    assert not text.frame.shift.any()
    for basis in (text.frame.inputs, text.frame.outputs):
        each = basis.astype(np.float32)
        np.testing.assert_allclose(each.T @ each, np.eye(each.shape[1]), atol=5e-3)
    states = text.frame.states.astype(np.float32)
    energy = np.square(states * text.frame.scales @ text.frame.inputs.astype(np.float32)).mean(0)
    assert energy[0] > 4 * energy[-1] and (np.diff(energy) < 1e-3).all()
    mean, _, _ = text.words.expected(text.frame.read(states), np.zeros(len(states), np.int64))
    wanted = mean @ text.frame.outputs.astype(np.float32)
    assert np.abs(wanted - text.frame.expected).max() < 0.01 * np.abs(wanted).max()


def test_the_program_s_adapter_does_what_numpy_makes_of_it(bundle):
    text, engine = TextHead.of(bundle), open_engine(bundle, name="executorch-binding")
    spec = {"kind": "completion", "template": "{a}", "completion_field": "b"}
    task = task_for(bundle, spec)
    examples = encode_rows(task, [{"a": "The cat", "b": " sat on the mat."}] * 2)
    values = bundle.values.astype(np.float32)
    weights = np.random.default_rng(0).standard_normal(text.entries, np.float32)
    look, batch = Look(engine, task, bundle.bounds, examples), task.collate(examples)
    tokens = tokens_of(look, values, bundle.adapter_shape[1])
    none = Observed(tokens.observed.states[:0], np.zeros(0, np.int64))
    plain = look.losses(values[None])
    for own, moves in ((np.zeros_like(weights), False), (weights, True)):
        found = text.gradient(own, tokens.observed, none, 0.0)
        logp = Values(values, TextPart(text, own)).score(engine, batch)
        exact = task.losses(logp, batch)
        np.testing.assert_allclose(tokens.losses(found.logp), exact, atol=0.1)
        assert (np.abs(exact - plain).max() > 0.3) == moves


def test_what_the_norm_does_is_read_off_it():
    rng = np.random.default_rng(0)
    last = rng.standard_normal((200, 8)).astype(np.float32)
    last /= np.sqrt(np.square(last).mean(axis=1, keepdims=True))
    weight, shift = rng.uniform(0.5, 2, 8), rng.standard_normal(8)
    found = read_norm(last, (last * weight).astype(np.float32))
    np.testing.assert_allclose(found[0], weight, rtol=1e-4)
    assert not found[1].any()
    centred = (last - last.mean(1, keepdims=True)) / last.std(1, keepdims=True)
    found = read_norm(last, (centred * weight + shift).astype(np.float32))
    np.testing.assert_allclose(found[0], weight, rtol=1e-3)
    np.testing.assert_allclose(found[1], shift, atol=1e-3)
    assert read_norm(last, np.abs(last)) is None
    assert read_norm(last, last[:, :4]) is None


def test_words_that_the_program_does_not_hold_are_missed(tmp_path):
    codes, scales = np.arange(64, dtype=np.uint8).reshape(4, 16), np.ones((4, 1), np.uint16)
    content = codes.tobytes()[:-1] + b"!" + b"z" + codes.tobytes() + scales.tobytes()
    file = tmp_path / "program.pte"
    file.write_bytes(content)
    assert find_words(file, codes, scales) == WordsPlace("program.pte", 65, 129)
    file.write_bytes(content[:120])
    with pytest.raises(ModelError, match=r"program\.pte: does not hold the output head"):
        find_words(file, codes, scales)


def test_a_binding_told_of_no_hidden_states_gives_none(bundle):
    with ExecutorchBinding(
        bundle.program_path,
        bundle.bounds,
        bundle.K,
        0,
        bundle.adapter_shape,
        bundle.terms_shapes,
        None,
    ) as engine:
        assert engine.hidden_width == 0
        asked = request(bundle, rows=1, length=4, scored=1, choices=1, probes=1)
        scores = engine.score(*asked)
        assert scores.logp.shape == (1, 1, 1) and scores.hidden is None
    with pytest.raises(EngineError, match=r"program\.pte: the program is closed"):
        engine.score(*asked)


def test_matrices_without_entries_stay_plain(tiny_llama):
    mask = {Q: np.array([3, 40]), V: np.zeros(0, np.int64), DOWN: np.array([7])}
    program, surgery = prepare_program(tiny_llama.model, mask, BOUNDS)
    modules = dict(program.backbone.named_modules())
    replaced = {name for name, module in modules.items() if isinstance(module, SensitiveLinear)}
    assert replaced == {Q.removeprefix("model."), DOWN.removeprefix("model.")}
    assert type(modules[V.removeprefix("model.")]) is torch.nn.Linear
    assert [layer[0] for layer in surgery.layers] == [Q, DOWN]


def test_matrices_that_read_one_input_share_their_columns(tiny_llama):
    names = [f"model.layers.0.{part}" for part in ("self_attn.q_proj", "self_attn.v_proj")]
    names += [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")]
    groups = input_groups(tiny_llama.model, names, torch.zeros(1, 2, dtype=torch.int64))
    assert groups == [names[:2], names[2:4], names[4:]]
    mask = {name: np.array([place]) for place, name in enumerate(names)}
    program, _ = prepare_program(tiny_llama.model, mask, BOUNDS)
    q, v = (program.backbone.get_submodule(name.removeprefix("model.")) for name in names[:2])
    assert q.columns is v.columns
    assert q.columns.index.tolist() == [0, 1]
    assert q.dense.weight[:, :2].abs().max() == 0, "float columns leave the int8 path whole"
    assert q.dense.weight[:, 2:].abs().min() > 0


def export(loaded, folder, mask=None, text=CALIBRATION, **changes):
    arguments = {"bounds": BOUNDS, "mask": mask or {Q: np.array([3])}}
    return export_model(
        loaded, folder, calibrate=lambda tokenizer: (text, "t"), **arguments | changes
    )


def test_bad_models_and_masks_are_refused(tiny_llama, tmp_path):
    with pytest.raises(ModelError, match=r"model.layers.9.*profile it again"):
        export(tiny_llama, tmp_path / "b", {"model.layers.9.q": np.array([1])})
    with pytest.raises(ModelError, match="no sensitive entry"):
        export(tiny_llama, tmp_path / "b", {Q: np.zeros(0, np.int64)})
    with pytest.raises(ModelError, match="index lies outside"):
        export(tiny_llama, tmp_path / "b", {Q: np.array([32 * 32])})
    with pytest.raises(ModelError, match="length bound 4096 exceeds"):
        export(tiny_llama, tmp_path / "b", bounds=Bounds(2, 2, 4096, 2, 2))
    with pytest.raises(ModelError, match="row bound 1 would fix the number of rows"):
        export(tiny_llama, tmp_path / "b", bounds=Bounds(2, 1, 32, 2, 2))
    with pytest.raises(ModelError, match="unknown rounding 'best'; take gptq or nearest"):
        export(tiny_llama, tmp_path / "b", rounding="best")
    assert not (tmp_path / "b").exists()


def test_a_profile_of_another_model_is_refused(tiny_llama, tmp_path):
    names = {"model_name": "x", "model_sha256": "0" * 64, "text_sha256": "t"}
    profile = compute_profile(tiny_llama.model, CALIBRATION[:1], **names)
    save_profile(profile, tmp_path / "p")
    with pytest.raises(ModelError, match="profile is of another model"):
        export(tiny_llama, tmp_path / "b", mask="compact", profile=tmp_path / "p")


def test_nan_weights_are_refused_by_layer(tiny_llama, tmp_path):
    tiny_llama.model.get_submodule(DOWN).weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj.*NaN"):
        export(tiny_llama, tmp_path / "b")


def test_a_width_that_int4_groups_do_not_divide_is_refused(tmp_path):
    import transformers
    from seedtune.export.quantise.int4 import quantise_linears_

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"q_proj.*48 is not a multiple of the group size 32"):
        quantise_linears_(transformers.LlamaForCausalLM(config))
