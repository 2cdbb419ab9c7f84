import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from seedtune.export.model.shape import read_shape
from seedtune.host_tools.data.fetch import fetch
from seedtune.host_tools.estimate import host_stages
from seedtune.host_tools.estimate.device_stages import estimate_tuning, estimate_writing
from seedtune.host_tools.estimate.host_stages import (
    estimate_export,
    estimate_profile,
)
from seedtune.host_tools.estimate.sizes import estimate_bundle, measure_reading, measure_speed
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import EngineError, ModelError
from smollm2 import whole

BOUNDS = Bounds(probes=2, rows=16, length=64, positions=16, candidates=2)
SPEED = 1e11


def exporting(shape, **more):
    return estimate_export(shape, speed=SPEED, **more)


@pytest.fixture(scope="module")
def shape(tiny_llama_folder):
    return read_shape(tiny_llama_folder)


def test_shape_counts_every_parameter_once(shape, tiny_llama):
    assert shape.parameters == sum(one.numel() for one in tiny_llama.model.parameters())
    assert shape.linear_weights == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert (shape.embedding, shape.head) == (300 * 32, 300 * 32)
    assert (shape.blocks, shape.hidden, shape.intermediate, shape.vocabulary) == (2, 32, 64, 300)
    assert shape.other == 5 * 32  # norms
    assert not shape.gguf


def test_shape_is_read_from_the_configuration_alone(tiny_llama_folder, tmp_path, shape):
    config = json.loads((tiny_llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tied = read_shape(tmp_path)
    assert tied.head == 0
    assert tied.parameters == shape.parameters - 300 * 32
    assert tied.linears == shape.linears


def test_source_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match="cannot read the shape of the model") as caught:
        read_shape(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_profile_holds_one_block_and_what_all_of_them_read(shape):
    wide = dataclasses.replace(shape, blocks=32, linears=shape.linears | {"more": (9999, 9999)})
    found = estimate_profile(wide, speed=SPEED)
    assert found.components["float32 weights of a block"] == 4 * (wide.linear_weights // 32)
    read = 4 * (32 + 2) * 32 * 128 * shape.hidden
    assert found.components["what blocks read of all text"] == read
    twice = estimate_profile(wide, length=256, speed=SPEED)
    assert twice.components["what blocks read of all text"] == 2 * read
    assert twice.seconds == pytest.approx(2 * found.seconds)
    # A vocabulary as large as that takes more than a block.
    assert "logits" in estimate_profile(shape, speed=SPEED).components


LLAMA_2_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def test_seven_billion_weights_take_far_less_than_their_float32(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    seven = read_shape(tmp_path)
    assert 6.7e9 < seven.parameters < 6.8e9
    others = ("onnx", "torch")
    assert estimate_profile(seven, speed=SPEED).bytes < 12e9
    assert exporting(seven, to=others).bytes < 12e9
    # Lowering adds its graphs alone, however large the matrices are: the weights are not there.
    assert exporting(seven).bytes - exporting(seven, to=others).bytes < 1e9
    deep = dataclasses.replace(seven, linears={f"{n}": (64, 64) for n in range(2000)})
    assert "graphs" in exporting(deep).components


LLAMA_3B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072,
    "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 24, "head_dim": 128,
    "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip


def test_rounding_a_wide_head_takes_what_was_measured(tmp_path):
    """Two blocks of Llama-3.2-3B's shape, the tokenizer of SmolLM2: 3.01 GB."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3B))
    wide = dataclasses.replace(read_shape(tmp_path), tokenizer_pieces=98_052)
    found = exporting(wide, rounding="nearest")
    assert found.bytes == pytest.approx(3.01e9, rel=0.05)
    # Rows are rounded some thousands at a time, so a head of twice as many costs its own bytes.
    twice = exporting(dataclasses.replace(wide, vocabulary=2 * 128_256), rounding="nearest")
    name = "a matrix while it is rounded"
    assert twice.components[name] - found.components[name] == 5.125 * 128_256 * 3072
    # GPTQ holds the second moments of an input, and the text, besides.
    with_text = exporting(wide).components
    assert with_text["second moments of its input"] == 28 * 3072**2
    assert with_text["calibration text"] > 0 and "calibration text" not in found.components


def tuning(shape, bounds=BOUNDS, rows=16, length=32, estimator="two-point", **more):
    options = {"rows": rows, "length": length, "estimator": estimator, "speed": SPEED}
    return estimate_tuning(shape, bounds, **options, **more)


@pytest.mark.parametrize("bound", ["probes", "rows"])
def test_tuning_memory_grows_with_the_bounds_that_cut_its_passes(shape, bound):
    smaller = dataclasses.replace(BOUNDS, **{bound: getattr(BOUNDS, bound) // 2})
    before, after = tuning(shape, smaller, rows=64), tuning(shape, rows=64)
    assert after.bytes > before.bytes
    assert after.seconds == before.seconds


def test_larger_batches_take_longer_but_passes_stay_as_large(shape):
    small, large = tuning(shape, rows=64), tuning(shape, rows=128)
    assert large.bytes == small.bytes
    assert large.seconds == pytest.approx(2 * small.seconds)


def test_engine_without_torch_is_smaller(shape):
    assert tuning(shape).bytes < tuning(shape, engine="executorch-binding").bytes
    with pytest.raises(EngineError, match="engine 'gpu'"):
        tuning(shape, engine="gpu")


def test_tuning_holds_what_its_estimator_learns_from(shape):
    def of(estimator, examples):
        return tuning(shape, estimator=estimator, examples=examples)

    width = 3 * 32  # of the states; held-out rows keep theirs and a one, in float32
    states = 16 * 2000 * width + 4 * 2000 * (width + 1)
    assert of("readout", 2000).components["estimator (readout)"] == states
    assert of("readout", 2000).bytes > of("readout", 100).bytes
    assert of("two-point", 2000).components["estimator (two-point)"] == 0
    # One forward of one row of values a step instead of two.
    assert of("two-point", 1).seconds == 2 * of("readout", 1).seconds


def test_a_larger_tokenizer_counts_on_both_sides(shape):
    large = dataclasses.replace(shape, tokenizer_pieces=777_050)  # as of Gemma 3
    assert tuning(large).bytes - tuning(shape).bytes > 90e6  # it gives back the most
    assert exporting(large).bytes - exporting(shape).bytes > 200e6
    assert estimate_profile(large, speed=SPEED).components["a larger tokenizer"] > 200e6


def test_a_tokenizer_counts_by_its_tokens_and_merges(shape, tiny_llama_folder, tmp_path):
    text = (tiny_llama_folder / "tokenizer.json").read_text(encoding="utf-8")
    model = json.loads(text)["model"]
    assert shape.tokenizer_pieces == len(model["vocab"]) + len(model.get("merges", ()))
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_folder, folder)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(text), indent=8))
    assert read_shape(folder).tokenizer_pieces == shape.tokenizer_pieces
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer file"):
        read_shape(folder)


def test_the_table_comes_in_as_tokens_occur(shape):
    wide = dataclasses.replace(shape, vocabulary=262_144, hidden=640)
    few, many = (tuning(wide, examples=n).components["embedding table"] for n in (3, 100_000))
    assert 20e6 < few < 80e6 and many == pytest.approx(262_144 * 644, rel=0.01)


SMOLLM2 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


def test_writing_is_as_fast_as_was_measured(tmp_path):
    """93 tokens a second behind 64 others, 63 behind 600, at 18 to 20 GB/s."""
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    shape = read_shape(tmp_path)
    for tokens, reading, measured in ((128, 20e9, 10.5e-3), (1200, 17.6e9, 15e-3)):
        found = estimate_writing(shape, tokens=tokens, reading=reading)
        assert found.seconds == pytest.approx(measured, rel=0.15)
    half = estimate_writing(shape, tokens=128, reading=10e9).seconds
    assert half == 2 * estimate_writing(shape, tokens=128, reading=20e9).seconds


def test_what_is_read_a_second_is_plausible():
    assert 1e8 < measure_reading() < 1e12


def test_speed_is_plausible():
    assert 1e8 < measure_speed() < 1e14


MEASURE = """
import sys
from pathlib import Path
from seedtune.export.model.load_model import load_causal_lm
from seedtune.export.profile.fisher import compute_profile
from seedtune.host_tools.data.calibration import load_calibration
from seedtune.host_tools.data.fetch import fetch
from seedtune.runtime.engines.memory import peak_resident_bytes
length = int(sys.argv[1])
loaded = load_causal_lm(fetch("smollm2-135m"), "stored")
text = load_calibration(loaded.tokenizer, sequences=2, length=length, held_out=1)
compute_profile(loaded.model, text.profile, model_name="m", model_sha256="", text_sha256="",
                file=Path(sys.argv[2]))
print(peak_resident_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("length", [32, 256])
def test_profile_memory_is_within_15_percent_of_the_measurement(
    smollm2, length, tmp_path, monkeypatch
):
    """``smollm2`` makes sure that the file is dequantised: that has a higher peak of its own."""
    from seedtune.host_tools.data.fetch import fetch

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(length), str(tmp_path / "profile")],
        capture_output=True,
        text=True,
        check=True,
    )
    monkeypatch.setattr(host_stages, "SEQUENCES", 2)
    shape = read_shape(fetch("smollm2-135m"))
    expected = estimate_profile(shape, length=length, speed=SPEED).bytes
    assert expected == pytest.approx(int(done.stdout), rel=0.15)


def test_a_head_for_text_has_its_frame_and_its_words(shape):
    found = tuning(shape, estimator="text-head").components
    assert found["estimator (text-head)"] > 60e6 > found["values"]
    assert 0 < estimate_bundle(shape).components["frame of a text head"] < 1e6


@pytest.mark.slow
def test_a_bundle_is_as_large_as_was_estimated():
    parts = whole().manifest["parts"].values()
    estimated = estimate_bundle(read_shape(fetch("smollm2-135m"))).bytes
    assert estimated == pytest.approx(sum(part["bytes"] for part in parts), rel=0.1)
