"""The benchmarks' dense program is made once, and again where it is not what was made."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from seedtune.host_tools.bench.programs import dense_program as module
from seedtune.runtime.files import place_hashed, workplace


def test_a_damaged_program_is_lowered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def lower(function: Any, model: str, bounds: Any, generation: Any, file: Path) -> None:
        made.append(file)
        with workplace(file) as work:
            (work / file.name).write_bytes(b"program" * 1000)
            place_hashed(work / file.name, file)

    monkeypatch.setattr(module, "run_in_child", lower)
    monkeypatch.setattr(module, "fetch", lambda name: tmp_path)
    bundle = SimpleNamespace(bounds=None, programs=[SimpleNamespace(generation=None)])
    base: Any = SimpleNamespace(folder=tmp_path, bundle=bundle)
    file = module.dense_program(base)
    assert module.dense_program(base) == file == tmp_path / "dense.pte" and len(made) == 1
    file.write_bytes(file.read_bytes()[:1000])
    module.dense_program(base)
    assert len(made) == 2 and file.read_bytes() == b"program" * 1000
