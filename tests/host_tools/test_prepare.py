"""What ``prepare`` keeps, and when it makes it again."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seedtune.export.profile import fisher as profile
from seedtune.host_tools.data.calibration import Calibration
from seedtune.host_tools.prepare import prepare as module


def test_a_profile_is_kept_until_its_text_or_the_code_changes(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    plain = profile.compute_profile

    def counted(*arguments: Any, **more: Any) -> Any:
        computed.append(more["text_sha256"])
        return plain(*arguments, **more)

    monkeypatch.setattr(profile, "compute_profile", counted)
    file = tmp_path / "profile.safetensors"
    tokens = np.random.default_rng(0).integers(0, 300, (3, 2, 16))

    def ask(text: str) -> Any:
        calibration = Calibration(tokens[0], tokens[1], text, "random")
        return module._profile(tiny_llama, calibration, file, lambda *now: None)

    first = ask("a" * 64)
    assert ask("a" * 64).layers.keys() == first.layers.keys()
    assert len(computed) == 1
    ask("b" * 64)
    assert len(computed) == 2
    (tmp_path / "profile.made-by").write_text("older code")
    ask("b" * 64)
    assert len(computed) == 3
    ask("b" * 64)
    assert len(computed) == 3


def test_the_key_follows_the_models_files(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    job = {"model": str(tmp_path)}
    before = module._key(job)
    assert module._key(job) == before
    os.utime(weights, ns=(0, 0))
    touched = module._key(job)
    weights.write_bytes(b"12345")
    os.utime(weights, ns=(0, 0))
    assert len({before, touched, module._key(job)}) == 3
    assert module._key({"model": "org/name"}) != before
