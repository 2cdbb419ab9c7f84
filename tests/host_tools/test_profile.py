import dataclasses
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from profile_files import save_profile
from safetensors import safe_open
from seedtune.export.model.decoder_linears import decoder_linears
from seedtune.export.profile import fisher
from seedtune.export.profile.fisher import compute_profile
from seedtune.export.profile.kept_profile import KEPT, kept_profile
from seedtune.export.profile.profile_file import (
    LayerProfile,
    load_profile,
    profile_settings,
)
from seedtune.runtime.errors import ModelError

SEQUENCES = np.random.default_rng(0).integers(2, 300, (5, 12))
NAMES = {"model_name": "tiny", "model_sha256": "m" * 64, "text_sha256": "t" * 64}


@pytest.fixture
def profile(tiny_llama):
    return compute_profile(tiny_llama.model, SEQUENCES, **NAMES)


def test_every_decoder_linear_but_not_the_head(tiny_llama):
    names = list(decoder_linears(tiny_llama.model))
    assert len(names) == 2 * 7
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "model.layers.1.mlp.down_proj"
    assert "lm_head" not in names


def test_a_file_holds_what_memory_would(tiny_llama, profile, tmp_path):
    file = tmp_path / "p.safetensors"
    written = compute_profile(tiny_llama.model, SEQUENCES, file=file, **NAMES)
    assert list(written.layers) == list(profile.layers)
    assert written.sha256 == profile.sha256 == load_profile(file).sha256


def test_model_is_given_back_as_it_came(tiny_llama, profile):
    for name, parameter in tiny_llama.model.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name
    for linear in decoder_linears(tiny_llama.model).values():
        assert not linear._forward_pre_hooks
        assert not linear.weight._post_accumulate_grad_hooks


def test_half_precision_weights_keep_a_float32_accumulator(tiny_llama, profile):
    half = compute_profile(tiny_llama.model.bfloat16(), SEQUENCES, **NAMES)
    assert half.settings["dtype"] == "bfloat16"
    name = "model.layers.1.mlp.up_proj"
    one, other = half.layers[name].fisher, profile.layers[name].fisher
    assert one.dtype == np.float32
    assert np.corrcoef(np.sqrt(one.ravel()), np.sqrt(other.ravel()))[0, 1] > 0.98


def test_progress_counts_blocks_there_and_back(tiny_llama):
    steps = []
    compute_profile(
        tiny_llama.model, SEQUENCES[:3], progress=lambda *step: steps.append(step), **NAMES
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_nan_is_found_and_named(tiny_llama):
    tiny_llama.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="loss of calibration sequence 0 is not finite"):
        compute_profile(tiny_llama.model, SEQUENCES, **NAMES)
    assert not any(parameter.requires_grad for parameter in tiny_llama.model.parameters())


@pytest.mark.parametrize("shape", [(0, 8), (4, 1), (8,)])
def test_sequences_of_a_wrong_shape(tiny_llama, shape):
    with pytest.raises(ModelError, match="calibration sequences must be"):
        compute_profile(tiny_llama.model, np.ones(shape, np.int64), **NAMES)


def test_file_round_trip(profile, tmp_path):
    file = tmp_path / "tiny.profile.safetensors"
    save_profile(profile, file)
    again = load_profile(file)
    assert list(again.layers) == list(profile.layers)
    for name, layer in profile.layers.items():
        for field in dataclasses.fields(layer):
            one, other = (getattr(p.layers[name], field.name) for p in (profile, again))
            np.testing.assert_array_equal(one, other)
        # A mapping that could be written to is refused where the file is larger than the memory.
        assert not again.layers[name].fisher.flags.writeable
    assert again.settings == profile.settings
    assert again.settings["tokens"] == SEQUENCES.size
    assert (again.model_sha256, again.text_sha256) == ("m" * 64, "t" * 64)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_cache_keeps_profiles_by_model_tokens_and_code(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    counted = []

    def ask(text_sha256, tokens=SEQUENCES):
        counted.append(0)

        def count(done, total):
            counted[-1] = done

        return kept_profile(tiny_llama, tokens, text_sha256, count)

    first = ask("a" * 64)
    # More of a text was read for another purpose: what was profiled is the same.
    assert ask("b" * 64).sha256 == first.sha256
    ask("b" * 64, SEQUENCES[:3])
    ask("b" * 64)  # both are kept
    assert counted == [4, 0, 4, 0]
    (folder,) = (tmp_path / "profiles").iterdir()
    file = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    file.write_bytes(file.read_bytes()[:-10])
    ask("b" * 64)
    other = tmp_path / "other_code.py"
    other.write_text("# changed")
    monkeypatch.setattr(fisher, "__file__", str(other))
    ask("b" * 64)
    assert counted[4:] == [4, 4]
    assert len(list(folder.glob("*.safetensors"))) == KEPT
    ask("b" * 64)
    assert counted[-1] == 0  # the oldest went


def test_of_two_that_want_a_profile_one_waits(tiny_llama, tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    from seedtune.export.model.load_model import load_causal_lm

    other, waits, counted = load_causal_lm(tiny_llama_folder), Event(), []

    def late():
        count = lambda done, total: counted.append(done)  # noqa: E731
        return kept_profile(other, SEQUENCES, "a" * 64, count, waits.set)

    with ThreadPoolExecutor(1) as thread:
        second = []

        def progress(done, total):
            if done == 2 and not second:
                second.append(thread.submit(late))
                assert waits.wait(60)

        first = kept_profile(tiny_llama, SEQUENCES, "a" * 64, progress)
        assert second[0].result(60).sha256 == first.sha256
    assert counted == []


def test_the_hash_of_a_profile_follows_what_was_measured(profile, tmp_path):
    file = tmp_path / "p.safetensors"
    save_profile(profile, file)
    assert load_profile(file).sha256 == profile.sha256
    name = "model.layers.0.mlp.up_proj"
    moved = dataclasses.replace(profile.layers[name], fisher=profile.layers[name].fisher * 2)
    layers = {**profile.layers, name: moved}
    assert dataclasses.replace(profile, layers=layers).sha256 != profile.sha256
    assert dataclasses.replace(profile, text_sha256="u" * 64).sha256 != profile.sha256


def test_a_profile_in_another_number_format_is_refused(profile, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "p.safetensors"
    save_profile(profile, file)
    with safe_open(file, "pt") as source:
        metadata = source.metadata()
    save_file({name: each.half() for name, each in load_file(file).items()}, file, metadata)
    with pytest.raises(ModelError, match=r"cannot read the profile: .* is F16, must be F32"):
        load_profile(file)


def test_unwritable_and_unreadable_files(profile, tmp_path):
    with pytest.raises(ModelError, match="cannot write the profile"):
        save_profile(profile, tmp_path / "absent" / "p.safetensors")
    with pytest.raises(ModelError, match="cannot read the profile"):
        load_profile(tmp_path / "absent.safetensors")
    file = tmp_path / "p.safetensors"
    save_profile(profile, file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot read the profile"):
        load_profile(file)


def test_settings_are_read_without_the_arrays(profile, tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    save_profile(profile, file)
    monkeypatch.setattr(LayerProfile, "let_go", lambda layer: pytest.fail("an array was read"))
    assert profile_settings(file) == profile.settings
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot read the profile"):
        profile_settings(file)


def test_files_that_are_no_profile_of_this_version(profile, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    file = tmp_path / "p.safetensors"
    save_file({"x": np.zeros(2)}, file)
    with pytest.raises(ModelError, match="not a sensitivity profile"):
        load_profile(file)
    monkeypatch.setattr("seedtune.export.profile.profile_file.VERSION", 4)
    save_profile(profile, file)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="version 4, this seedtune reads 3; profile"):
        load_profile(file)


def test_profile_with_nan_or_mismatched_shapes_names_the_layer(profile, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    name, file = "model.layers.0.mlp.up_proj", tmp_path / "p.safetensors"
    save_profile(profile, file)
    with safe_open(file, framework="np") as source:
        metadata = source.metadata()
        good = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    spoiled = good[f"{name}.fisher"].copy()
    spoiled[1, 1] = np.nan
    for change, message in (
        ({f"{name}.fisher": spoiled}, "not finite"),
        ({f"{name}.fisher": good[f"{name}.fisher"][0]}, "is no matrix"),
    ):
        save_file({**good, **change}, file, metadata)
        with pytest.raises(ModelError, match=rf"layer {name}.*{message}"):
            load_profile(file)
