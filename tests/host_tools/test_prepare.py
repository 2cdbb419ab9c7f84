"""When ``prepare`` makes again what it keeps."""

import os
from pathlib import Path

from seedtune.host_tools.prepare import prepare as module


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
