"""What a mask covers: a report from a profile, as numbers, as a table and as one picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from seedtune.export.profile.masks import Mask
from seedtune.export.profile.profile_file import Profile
from seedtune.runtime.errors import ModelError


@dataclass(frozen=True)
class LayerReport:
    """One matrix: its mask entries, the distinct input columns and output rows that they touch."""

    name: str
    kind: str  # last part of the name, such as q_proj
    block: int  # number of the decoder block; -1 outside of one
    shape: tuple[int, int]
    entries: int
    columns: int
    rows: int
    mass: float  # sum of Fisher values of the whole matrix
    covered: float  # the part of ``mass`` on mask entries


@dataclass(frozen=True)
class Report:
    """Figures of one mask over one profile. Shares lie in 0..1."""

    layers: list[LayerReport]

    @property
    def weights(self) -> int:
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    @property
    def entries(self) -> int:
        return sum(layer.entries for layer in self.layers)

    @property
    def covered_share(self) -> float:
        """Share of the squared-gradient mass that lies on mask entries."""
        total = sum(layer.mass for layer in self.layers)
        return sum(layer.covered for layer in self.layers) / total if total else 0.0

    @property
    def empty_layers(self) -> list[str]:
        """Matrices without an entry: they stay plain linears in the exported program."""
        return [layer.name for layer in self.layers if layer.entries == 0]

    @property
    def column_share(self) -> float:
        """Dense size of the touched columns (columns x outputs) over that of all weights."""
        return sum(layer.columns * layer.shape[0] for layer in self.layers) / self.weights


def report(profile: Profile, mask: Mask) -> Report:
    """Measures ``mask`` (every layer of ``profile``, as ``build_mask`` returns it)."""
    layers = []
    for name, layer in profile.layers.items():
        indices = mask[name]
        out_features, in_features = layer.fisher.shape
        block = re.search(r"\.(\d+)\.", name)
        layers.append(
            LayerReport(
                name=name,
                kind=name.rpartition(".")[2],
                block=int(block[1]) if block else -1,
                shape=(out_features, in_features),
                entries=indices.size,
                columns=np.unique(indices % in_features).size,
                rows=np.unique(indices // in_features).size,
                mass=float(layer.fisher.sum(dtype=np.float64)),
                covered=float(layer.fisher.reshape(-1)[indices].sum(dtype=np.float64)),
            )
        )
        layer.let_go()
    return Report(layers)


def summary(found: Report) -> dict[str, int | float]:
    """The headline figures, for ``--json``."""
    return {
        "weights": found.weights,
        "entries": found.entries,
        "covered_share": found.covered_share,
        "matrices": len(found.layers),
        "empty_matrices": len(found.empty_layers),
        "column_share": found.column_share,
    }


def tables(found: Report, every_matrix: bool, peak: int | None = None) -> Group:
    """A rich table by kind of matrix, in ten lines for most models, and one by matrix if asked.

    Args:
        peak: bytes that the process held at most.
    """
    return Group(_by_kind(found, peak), *([_by_matrix(found)] if every_matrix else []))


def _by_kind(found: Report, peak: int | None) -> Table:
    held = "" if peak is None else f"; peak memory {peak / 1e6:,.0f} MB"
    table = Table(
        title=f"{found.entries:,} of {found.weights:,} weights hold "
        f"{found.covered_share:.1%} of the squared-gradient mass",
        caption=f"{len(found.empty_layers)} of {len(found.layers)} empty; touched columns "
        f"{found.column_share:.2%} of dense{held}",
        box=None,
    )
    table.add_column("kind")
    for heading in (
        "matrices",
        "empty",
        "entries",
        "of entries",
        "columns x outputs",
        "mass covered",
    ):
        table.add_column(heading, justify="right")
    for kind in _kinds(found):
        layers = [layer for layer in found.layers if layer.kind == kind]
        part = Report(layers)
        table.add_row(
            kind,
            str(len(layers)),
            str(len(part.empty_layers)),
            f"{part.entries:,}",
            f"{part.entries / found.entries:.1%}" if found.entries else "-",
            f"{part.column_share:.2%}",
            f"{part.covered_share:.1%}",
        )
    return table


def _by_matrix(found: Report) -> Table:
    table = Table(title="By matrix")
    table.add_column("matrix")
    for heading in ("shape", "entries", "unique columns", "unique rows", "mass covered"):
        table.add_column(heading, justify="right")
    for layer in found.layers:
        table.add_row(
            layer.name,
            f"{layer.shape[0]} x {layer.shape[1]}",
            f"{layer.entries:,}",
            f"{layer.columns} of {layer.shape[1]}",
            f"{layer.rows} of {layer.shape[0]}",
            f"{layer.covered / layer.mass:.1%}" if layer.mass else "-",
        )
    return table


def _kinds(found: Report) -> list[str]:
    return list(dict.fromkeys(layer.kind for layer in found.layers))


def mass_curve(profile: Profile) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Share of the weights, largest Fisher value first, and the share of mass that they hold.

    Taken from a histogram in steps of 1/50 of a decade instead of a sort of all weights.
    """
    edges = np.logspace(-45, 10, 55 * 50 + 1)
    counts = np.zeros(edges.size - 1)
    masses = np.zeros(edges.size - 1)
    for layer in profile.layers.values():
        values = layer.fisher.reshape(-1)
        values = values[values > 0]
        # Binning by the logarithm is an order of magnitude faster than np.histogram's search.
        bins = ((np.log10(values) + 45) * 50).astype(np.int64).clip(0, counts.size - 1)
        counts += np.bincount(bins, minlength=counts.size)
        masses += np.bincount(bins, weights=values, minlength=counts.size)
    share = np.cumsum(counts[::-1]) / profile.entries
    mass = np.cumsum(masses[::-1]) / max(masses.sum(), np.finfo(np.float64).tiny)
    return share[share > 0], mass[share > 0]


def draw(profile: Profile, found: Report, file: Path) -> None:
    """Writes one PNG: mass against share of weights, entries by block and kind, touched columns.

    Raises:
        ModelError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, so that no global state and no display are touched.
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    curve, heat, bars = figure.subplots(1, 3)

    share, mass = mass_curve(profile)
    curve.semilogx(share * 100, mass * 100)
    here = found.entries / found.weights * 100
    curve.plot([here], [found.covered_share * 100], "o", color="tab:red")
    curve.annotate(
        f"mask: {here:.2g} % of weights,\n{found.covered_share:.0%} of mass",
        (here, found.covered_share * 100),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",  # the curve rises steeply here: the free space is above it, to the left
    )
    curve.set(
        title="Squared-gradient mass",
        xlabel="share of weights, largest first (%)",
        ylabel="share of mass (%)",
        ylim=(0, 102),
    )
    curve.grid(alpha=0.3)

    kinds = _kinds(found)
    blocks = sorted({layer.block for layer in found.layers})
    grid = np.full((len(kinds), len(blocks)), np.nan)
    for layer in found.layers:
        cell = kinds.index(layer.kind), blocks.index(layer.block)
        # A matrix without an entry stays blank.
        grid[cell] = np.log10(layer.entries) if layer.entries else np.nan
    image = heat.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    heat.set_yticks(range(len(kinds)), kinds)
    heat.set(title="Entries by block and kind (blank: none)", xlabel="decoder block")
    figure.colorbar(image, ax=heat, label="log10 entries")

    shares = [
        Report([one for one in found.layers if one.kind == kind]).column_share for kind in kinds
    ]
    bars.barh(range(len(kinds)), [share * 100 for share in shares])
    bars.set_yticks(range(len(kinds)), kinds)
    bars.invert_yaxis()
    bars.set(
        title=f"Touched columns, {found.column_share:.2%} overall",
        xlabel="unique columns x outputs, share of dense size (%)",
    )
    try:
        figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise ModelError(f"{file}: cannot write the picture: {error.strerror}") from error
