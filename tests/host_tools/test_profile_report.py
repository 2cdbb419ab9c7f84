import io
import json

import numpy as np
import pytest
from rich.console import Console
from seedtune.export.profile.masks import build_mask, global_top_k
from seedtune.export.profile.profile_file import LayerProfile, Profile
from seedtune.host_tools.reports.profile_report import draw, mass_curve, report, summary, tables
from seedtune.runtime.errors import ModelError

FISHER = {
    "model.layers.0.self_attn.q_proj": [[8.0, 0.0, 4.0], [1.0, 0.0, 0.0]],
    "model.layers.0.mlp.down_proj": [[0.5, 0.5], [0.25, 0.25]],
    "model.layers.1.self_attn.q_proj": [[0.0, 2.0, 0.0], [0.0, 1.5, 0.0]],
}


@pytest.fixture
def profile():
    layers = {
        name: LayerProfile(
            np.array(values, np.float32),
            np.zeros(len(values[0]), np.float32),
        )
        for name, values in FISHER.items()
    }
    return Profile(layers, "m", "", "", {})


@pytest.fixture
def found(profile):
    return report(profile, build_mask(profile, 4 / 16))  # 8, 4, 2 and 1.5


def test_figures_by_hand(found):
    first, empty, last = found.layers
    # Neither matrix is square: what is divided by the other side's size comes out otherwise.
    assert (first.entries, first.columns, first.rows) == (2, 2, 1)
    assert (first.kind, first.block, first.shape) == ("q_proj", 0, (2, 3))
    assert (first.mass, first.covered) == (13.0, 12.0)
    assert (empty.entries, empty.columns, empty.rows, empty.covered) == (0, 0, 0, 0.0)
    assert (last.entries, last.columns, last.rows, last.block) == (2, 1, 2, 1)
    assert found.empty_layers == ["model.layers.0.mlp.down_proj"]
    assert found.covered_share == pytest.approx(15.5 / 18.0)
    assert found.column_share == pytest.approx((2 * 2 + 0 + 1 * 2) / 16)


def test_summary_is_plain_json(found):
    assert json.loads(json.dumps(summary(found))) == {
        "weights": 16,
        "entries": 4,
        "covered_share": pytest.approx(15.5 / 18.0),
        "matrices": 3,
        "empty_matrices": 1,
        "column_share": pytest.approx(6 / 16),
    }


def test_tables_name_kinds_and_matrices(found):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(found, True))
    text = console.export_text()
    assert "4 of 16 weights hold 86.1% of the squared-gradient mass" in text
    assert "1 of 3 empty" in text
    for name in ("q_proj", "down_proj", "model.layers.1.self_attn.q_proj"):
        assert name in text


def test_profile_of_zeros_has_no_share_and_still_draws(tmp_path):
    zeros = LayerProfile(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    profile = Profile({"only": zeros}, "m", "", "", {})
    found = report(profile, build_mask(profile, 0.5))
    assert found.covered_share == 0.0
    draw(profile, found, tmp_path / "zeros.png")


def test_mass_curve_agrees_with_a_sort():
    values = np.random.default_rng(0).lognormal(-20, 3, (100, 200)).astype(np.float32)
    profile = Profile({"only": LayerProfile(values, np.zeros(200, np.float32))}, "m", "", "", {})
    share, mass = mass_curve(profile)
    assert np.all(np.diff(share) >= 0)
    assert np.all(np.diff(mass) >= 0)
    assert share[-1] == pytest.approx(1.0)
    assert mass[-1] == pytest.approx(1.0)
    ordered = np.cumsum(np.sort(values.ravel())[::-1], dtype=np.float64)
    exact = ordered[np.maximum(np.round(share * values.size).astype(int), 1) - 1] / ordered[-1]
    np.testing.assert_allclose(mass, exact, rtol=1e-5)


def test_picture_is_a_png(profile, found, tmp_path):
    file = tmp_path / "report.png"
    draw(profile, found, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ModelError, match="cannot write the picture"):
        draw(profile, found, tmp_path / "absent" / "report.png")


@pytest.mark.slow
def test_smollm2_mask_sits_in_few_columns(smollm2):
    """The facts that the column-compact export rests on, over 8 of the usual 32 sequences."""
    from seedtune.export.profile.fisher import compute_profile
    from seedtune.host_tools.data.calibration import load_calibration

    text = load_calibration(smollm2.tokenizer, sequences=8)
    profile = compute_profile(
        smollm2.model,
        text.profile,
        model_name=smollm2.name,
        model_sha256=smollm2.sha256,
        text_sha256=text.sha256,
    )
    found = report(profile, build_mask(profile, method=global_top_k))
    assert found.weights == 106_168_320
    assert found.entries == 106_168
    assert 0.55 < found.covered_share < 0.80
    assert 15 <= len(found.empty_layers) <= 40
    assert found.column_share < 0.035
