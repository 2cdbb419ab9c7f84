import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from seedtune.export.profile.masks import (
    build_mask,
    compact_top_k,
    entry_count,
    global_top_k,
    magnitude_mask,
    mask_method,
    per_layer_top_k,
    random_mask,
)
from seedtune.export.profile.profile_file import LayerProfile, Profile
from seedtune.runtime.errors import ModelError


def profile_of(fishers):
    layers = {
        name: LayerProfile(np.asarray(fisher, np.float32)) for name, fisher in fishers.items()
    }
    return Profile(layers, "m", "", "", {})


# Few distinct values, so that ties are common.
fisher = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.sampled_from([0.0, 1e-12, 1e-10, 0.5, 0.5, 2.0]) | st.floats(0, 1, width=32),
)
profiles = st.lists(fisher, min_size=1, max_size=5).map(
    lambda found: profile_of({f"layer{number}": one for number, one in enumerate(found)})
)
fractions = st.floats(1e-4, 1.0)


def model_of(weights):
    """A model with linear layers of these weights."""
    model = torch.nn.Module()
    for name, weight in weights.items():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(torch.from_numpy(weight))
        model.add_module(name, linear)
    return model


def brute_force(scores, count):
    """Sorts all entries: larger first, then the earlier layer, then the smaller index."""
    entries = sorted(
        (-value, order, index)
        for order, values in enumerate(scores.values())
        for index, value in enumerate(np.ravel(values).tolist())
    )[:count]
    names = list(scores)
    mask = {name: [] for name in names}
    for _, order, index in sorted(entries, key=lambda entry: entry[1:]):
        mask[names[order]].append(index)
    return mask


def as_lists(mask):
    return {name: indices.tolist() for name, indices in mask.items()}


@given(profiles, fractions)
def test_global_equals_brute_force(profile, fraction):
    scores = {name: layer.fisher for name, layer in profile.layers.items()}
    expected = brute_force(scores, entry_count(profile, fraction))
    assert as_lists(build_mask(profile, fraction, global_top_k)) == expected


@given(profiles, fractions)
def test_per_layer_equals_brute_force_in_each_layer(profile, fraction):
    mask = as_lists(build_mask(profile, fraction, per_layer_top_k))
    for name, layer in profile.layers.items():
        count = max(1, round(layer.fisher.size * fraction))
        assert mask[name] == brute_force({name: layer.fisher}, count)[name]


@given(profiles, fractions, st.integers(0, 2**32))
def test_magnitude_equals_brute_force(profile, fraction, seed):
    generator = np.random.default_rng(seed)
    weights = {
        name: generator.integers(-3, 4, layer.fisher.shape).astype(np.float32)
        for name, layer in profile.layers.items()
    }
    scores = {name: np.abs(weight) for name, weight in weights.items()}
    expected = brute_force(scores, entry_count(profile, fraction))
    assert as_lists(build_mask(profile, fraction, magnitude_mask(model_of(weights)))) == expected


@given(profiles, fractions, st.integers(0, 2**63))
def test_random_has_the_same_count_and_repeats_by_seed(profile, fraction, seed):
    mask = build_mask(profile, fraction, random_mask(seed))  # checks order and range
    assert sum(indices.size for indices in mask.values()) == entry_count(profile, fraction)
    assert as_lists(build_mask(profile, fraction, random_mask(seed))) == as_lists(mask)


def test_random_is_uniform_over_the_model_and_depends_on_the_seed():
    profile = profile_of({"small": np.ones((10, 10)), "large": np.ones((90, 100))})
    counts = np.zeros(2)
    for seed in range(200):
        mask = random_mask(seed)(profile, 0.01)
        counts += [mask["small"].size, mask["large"].size]
    assert 0.005 < counts[0] / counts.sum() < 0.015  # 1 % of the weights
    one, other = (random_mask(seed)(profile, 0.01)["large"].tolist() for seed in (1, 2))
    assert one != other


def test_layers_without_entry_stay_in_the_mask_as_empty():
    profile = profile_of({"a": np.zeros((2, 2)), "b": np.full((2, 2), 3.0)})
    mask = build_mask(profile, 0.5, global_top_k)
    assert as_lists(mask) == {"a": [], "b": [0, 1, 2, 3]}
    assert all(indices.dtype == np.int64 for indices in mask.values())


def test_the_default_is_one_in_a_thousand_gathered_in_columns():
    fisher = np.random.default_rng(0).random((100, 100))
    fisher[::2, 7] += 1
    fisher[3, np.arange(40, 60)] += 3  # larger, each alone in its column
    profile = profile_of({"a": fisher})
    mask = build_mask(profile, 40 / 10_000)
    assert set(mask["a"] % 100) == {7}
    assert as_lists(mask) == as_lists(build_mask(profile, 40 / 10_000, compact_top_k))
    assert build_mask(profile)["a"].size == 10


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, float("nan"), 5])
@pytest.mark.parametrize("method", [global_top_k, per_layer_top_k, random_mask(0)])
def test_fraction_out_of_range(fraction, method):
    with pytest.raises(ModelError, match=r"mask fraction .* must lie above 0"):
        build_mask(profile_of({"a": np.ones((2, 2))}), fraction, method)


def test_methods_by_name(tmp_path, monkeypatch):
    assert mask_method("global") is global_top_k
    assert mask_method("per-layer") is per_layer_top_k
    (tmp_path / "my_masks_module.py").write_text(
        "import numpy as np\ndef first(profile, fraction):\n    return {'a': np.array([0])}\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    profile = profile_of({"a": np.ones((2, 2)), "b": np.ones((2, 2))})
    mask = build_mask(profile, 0.1, mask_method("my_masks_module:first"))
    assert as_lists(mask) == {"a": [0], "b": []}
    sys.modules.pop("my_masks_module")
    with pytest.raises(ModelError, match="is not a function"):
        mask_method("my_masks_module:number")
    with pytest.raises(ModelError, match="cannot be imported"):
        mask_method("my_masks_module:absent")
    with pytest.raises(ModelError, match="cannot be imported"):
        mask_method("no_such_module_here:f")
    with pytest.raises(ModelError, match="unknown mask 'fisher'; take compact"):
        mask_method("fisher")
    weights = {"a": np.float32([[1, -9], [3, 4]]), "b": np.float32([[5, 6], [-7, 8]])}
    found = build_mask(profile, 0.25, mask_method("magnitude", model=model_of(weights)))
    assert as_lists(found) == {"a": [1], "b": [3]}
    with pytest.raises(ModelError, match="use it where a model is given"):
        build_mask(profile, 0.25, mask_method("magnitude"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"c": [0]}, "layer c is not in the profile"),
        ({"a": [1, 0]}, "layer a: indices must ascend"),
        ({"a": [1, 1]}, "layer a: indices must ascend"),
        ({"a": [0, 4]}, r"layer a: an index is outside 0\.\.3"),
        ({"b": [-1, 2]}, r"layer b: an index is outside 0\.\.3"),
        ({"a": [0.5]}, "layer a: indices must be one row of integers"),
        ({"a": [[0]]}, "layer a: indices must be one row of integers"),
        ({}, "no entry was chosen"),
    ],
)
def test_result_of_a_users_method_is_checked(result, message):
    profile = profile_of({"a": np.ones((2, 2)), "b": np.ones((2, 2))})
    with pytest.raises(ModelError, match=message):
        build_mask(profile, 0.1, lambda _profile, _fraction: result)


def test_weights_of_another_model():
    profile = profile_of({"a": np.ones((2, 2))})
    for weights in ({}, {"a": np.ones((2, 3), np.float32)}):
        with pytest.raises(ModelError, match="layer a: the weights do not match"):
            build_mask(profile, 0.1, magnitude_mask(model_of(weights)))


def test_compact_gathers_entries_in_few_columns_and_matrices():
    """Planted: one matrix with two heavy columns, one with a weak column, one with strays."""
    generator = np.random.default_rng(0)
    fisher = {name: 1e-6 * generator.random((64, 32)) for name in ("heavy", "weak", "strays")}
    fisher["heavy"][:, 3] = 5.0 + generator.random(64)
    fisher["heavy"][:, 7] = 3.0 + generator.random(64)
    fisher["weak"][:40, 5] = 0.2
    fisher["strays"][np.arange(20), np.arange(20)] = 4.0  # each alone in its column
    profile = profile_of({name: each.astype(np.float32) for name, each in fisher.items()})

    def counts(method, entries):
        mask = build_mask(profile, entries / profile.entries, method)
        return {name: len(flat) for name, flat in mask.items()}

    assert counts(compact_top_k, 120) == {"heavy": 120, "weak": 0, "strays": 0}
    assert counts(global_top_k, 120) == {"heavy": 100, "weak": 0, "strays": 20}
    # More than the heavy columns hold: the weak one comes back rather than the strays.
    assert counts(compact_top_k, 160) == {"heavy": 128, "weak": 32, "strays": 0}
    chosen = build_mask(profile, 160 / profile.entries, compact_top_k)
    assert set(chosen["heavy"] % 32) == {3, 7} and set(chosen["weak"] % 32) == {5}


@given(profiles, fractions)
def test_compact_takes_exactly_as_many_as_global(profile, fraction):
    mask = build_mask(profile, fraction, compact_top_k)
    assert sum(len(flat) for flat in mask.values()) == entry_count(profile, fraction)
