"""Weights that are not there while a program is lowered: the same file, and no copy of any."""

import contextlib
import mmap
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from seedtune.export.lower import absent_weights
from seedtune.export.lower import lower as lowering
from seedtune.export.lower.lower import lower
from seedtune.export.model.stored_weight import Shelf, keep_stored_, standing_in
from seedtune.export.quantise.int4 import give_int4_, packed_weight
from torch import nn
from torch.export import export

WIDTH, LINEARS = 4096, 3

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads what Linux tells of memory"
)


class Chain(nn.Module):
    """Linears whose int4 weights lie on a shelf."""

    def __init__(self, folder, width):
        super().__init__()
        self.linears, self.more = nn.ModuleList(), 0.0
        self.width, self.codes, shelf = width, LINEARS * width * width // 2, Shelf(folder)
        for number in range(LINEARS):
            linear = nn.Linear(width, width, bias=False, device="meta").requires_grad_(False)
            keep_stored_(linear)
            linear.rest.shelf = shelf
            generator = torch.Generator().manual_seed(number)
            integers = torch.randint(-8, 8, (width, width), generator=generator).to(torch.int8)
            scales = torch.rand(width, width // 32, generator=generator).to(torch.bfloat16)
            give_int4_(linear, integers, scales.float() + 1)
            self.linears.append(linear)

    def forward(self, x):
        for linear in self.linears:
            x = torch.tanh(linear(x))
        return x + self.more


def methods(chain):
    """Two over the same weights."""

    def traced(name):
        chain.more = float(len(name))
        return export(chain, (torch.ones(2, chain.width),))

    return {name: partial(traced, name) for name in ("score", "generate")}


def test_the_file_is_the_one_of_weights_that_were_there(tmp_path, monkeypatch):
    """But for the names of weights, which executorch takes from their codes alone."""
    chain = Chain(tmp_path, 512)
    lower(chain, methods(chain), tmp_path / "absent.pte")
    whole = {linear: linear.weight for linear in chain.linears}
    monkeypatch.setattr(lowering, "absent_weights", lambda program: standing_in(whole))
    lower(chain, methods(chain), tmp_path / "whole.pte")
    name = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
    found, wanted = ((tmp_path / f"{each}.pte").read_bytes() for each in ("absent", "whole"))
    named = dict(zip(name.findall(wanted), name.findall(found), strict=True))
    assert len(set(named.values())) == len(named) >= LINEARS
    assert found == name.sub(lambda its: named[its[0]], wanted)


def test_the_file_holds_each_weight_once(tmp_path):
    chain, file = Chain(tmp_path, 512), tmp_path / "program.pte"
    lower(chain, methods(chain), file)
    found = file.read_bytes()
    for linear in chain.linears:
        for part in packed_weight(linear):
            assert found.count(part.view(torch.uint8).numpy().tobytes()) == 1
    assert len(found) < 1.25 * chain.codes, "a weight stands twice"


@needs_linux
def test_no_step_of_lowering_touches_or_copies_a_weight(tmp_path, monkeypatch):
    small, chain = Chain(tmp_path, 64), Chain(tmp_path, WIDTH)
    lower(small, methods(small), tmp_path / "first.pte")  # imports what there is to import
    made = []

    def kept(*asked):
        made.append(mmap.mmap(*asked))
        return made[-1]

    monkeypatch.setattr(absent_weights, "mmap", SimpleNamespace(mmap=kept))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    lower(chain, methods(chain), tmp_path / "program.pte")
    peak = memory("VmHWM") - before
    # One matrix, a third of them, passes through on its way from file to file.
    assert peak < 0.75 * chain.codes, f"{peak / chain.codes:.1f} copies of the codes"
    (nowhere,) = made
    address = torch.frombuffer(nowhere, dtype=torch.uint8).data_ptr()
    mapping = re.search(rf"^{address:x}-.*?^Rss: +(\d+) kB", smaps(), re.M | re.S)
    assert mapping is not None and mapping[1] == "0"


def test_a_weight_that_was_copied_on_the_way_is_no_zero_in_the_file(tmp_path):
    chain = Chain(tmp_path, 64)

    def traced():
        found = export(chain, (torch.ones(2, chain.width),))
        name = next(name for name in found.state_dict if "linears.1" in name)
        found.state_dict[name] = nn.Parameter(found.state_dict[name].clone(), requires_grad=False)
        return found

    with pytest.raises(KeyError):
        lower(chain, {"score": traced}, tmp_path / "program.pte")


class Table(nn.Module):
    """Rows of a table that stays a constant of the program, as an embedding does."""

    def __init__(self, rows):
        super().__init__()
        drawn = torch.randint(-128, 128, (rows, 1024), generator=torch.Generator().manual_seed(3))
        self.register_buffer("table", drawn.to(torch.int8))

    def forward(self, tokens):
        return self.table.index_select(0, tokens).to(torch.float32)


def looked_up(table, file):
    """Two methods over the same table."""
    methods = {name: lambda: export(table, (torch.arange(3),)) for name in ("score", "behind")}
    lower(table, methods, file)


def test_a_constant_stands_in_the_file_once_and_as_executorch_writes_it(tmp_path, monkeypatch):
    table = Table(64)
    looked_up(table, tmp_path / "in_place.pte")
    monkeypatch.setattr(lowering, "constants_in_place", contextlib.nullcontext)
    looked_up(table, tmp_path / "plain.pte")
    found = (tmp_path / "in_place.pte").read_bytes()
    assert found == (tmp_path / "plain.pte").read_bytes()
    assert found.count(table.table[:2].numpy().tobytes()) == 1


@needs_linux
def test_no_copy_of_a_constant_is_made(tmp_path):
    looked_up(Table(64), tmp_path / "first.pte")  # imports what there is to import
    table = Table(1 << 16)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    looked_up(table, tmp_path / "program.pte")
    peak = memory("VmHWM") - before
    assert peak < 0.5 * table.table.nbytes, f"{peak / table.table.nbytes:.1f} copies"


def memory(field):
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


def smaps():
    return Path("/proc/self/smaps").read_text()
