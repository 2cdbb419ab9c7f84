"""Masks: which weights are sensitive, chosen from a profile.

A mask method is any callable ``method(profile, fraction) -> {layer name: int64 flat indices}``.
Indices are row-major in the [out, in] matrix of the layer, ascending, without repeats. Layers that
get no entry may be left out or be empty. The ones here pick exactly the same number of entries for
the same fraction, so that they compare like with like; ``per_layer_top_k`` alone rounds by layer.

Ties go to the earlier layer, then to the smaller index, so a mask is a pure function of its input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from seedtune.runtime.errors import ModelError

from . import DEFAULT_FRACTION, DEFAULT_MASK
from .profile_file import Profile

Indices = npt.NDArray[np.int64]
Mask = dict[str, Indices]
MaskMethod = Callable[[Profile, float], Mask]

COLUMN_ENTRIES = 6
"""Entries that a column must hold for ``compact_top_k`` to keep it."""
COVERED_MASS = 0.94
"""Share of that mass that the matrices kept by ``compact_top_k`` hold."""


def global_top_k(profile: Profile, fraction: float) -> Mask:
    """The largest Fisher values of the whole model. Many layers may get no entry."""
    return _top_of_all(_flat_scores(profile), entry_count(profile, fraction))


def _flat_scores(profile: Profile) -> Iterator[tuple[str, npt.NDArray[np.floating]]]:
    """Each layer's scores; what was read of a file is given back when the next one is asked for."""
    for name, layer in profile.layers.items():
        yield name, layer.fisher.reshape(-1)
        layer.let_go()


def compact_top_k(profile: Profile, fraction: float) -> Mask:
    """The largest Fisher values where many of them lie together.

    A matrix costs the program one more product and sum, and a column its full height in float,
    however few of their entries are tuned. Most columns that ``global_top_k`` touches hold one to
    five entries, and half of the matrices hold 2 % of the mass. So columns with fewer than
    ``COLUMN_ENTRIES`` entries are given up, then the matrices with the least mass per row while
    the others hold ``COVERED_MASS``; the next largest entries of what stays fill the count.

    SmolLM2 at 0.1 %: 0.4 % of the dense weights in float instead of 2.5 %, in 57 matrices instead
    of 184, for 95 % of the squared-gradient mass. (With 98 % of the mass it was 91 matrices, and a
    forward took 1.07x of the dense program's.)
    """
    count = entry_count(profile, fraction)
    columns: dict[str, npt.NDArray[np.int64]] = {}
    mass: dict[str, float] = {}
    for name, flat in global_top_k(profile, fraction).items():
        fisher = profile.layers[name].fisher
        held = np.bincount(flat % fisher.shape[1], minlength=fisher.shape[1])
        columns[name] = np.flatnonzero(held >= COLUMN_ENTRIES)
        kept = flat[held[flat % fisher.shape[1]] >= COLUMN_ENTRIES]
        mass[name] = float(fisher.reshape(-1)[kept].sum(dtype=np.float64))
        profile.layers[name].let_go()
    wanted = COVERED_MASS * sum(mass.values())
    height = {name: profile.layers[name].fisher.shape[0] for name in columns}
    room = 0
    for name in sorted(columns, key=lambda each: -mass[each] / height[each]):
        if wanted <= 0 and room >= count:
            columns[name] = columns[name][:0]
        wanted -= mass[name]
        room += len(columns[name]) * height[name]
    if room < count:
        return global_top_k(profile, fraction)  # so few entries that none share a column

    def kept_scores() -> Iterator[tuple[str, npt.NDArray[np.floating]]]:
        for name, kept in columns.items():
            yield name, np.ascontiguousarray(profile.layers[name].fisher[:, kept]).reshape(-1)
            profile.layers[name].let_go()

    mask: Mask = {}
    for name, flat in _top_of_all(kept_scores(), count).items():
        kept, width = columns[name], profile.layers[name].fisher.shape[1]
        if len(kept):
            mask[name] = np.sort(flat // len(kept) * width + kept[flat % len(kept)])
    return mask


def per_layer_top_k(profile: Profile, fraction: float) -> Mask:
    """The same share of every layer, at least one entry each, by Fisher value."""
    entry_count(profile, fraction)  # checks the fraction
    mask = {}
    for name, layer in profile.layers.items():
        flat = layer.fisher.reshape(-1)
        mask[name] = _top(flat, max(1, round(flat.size * fraction)))
        layer.let_go()
    return mask


def random_mask(seed: int) -> MaskMethod:
    """Method that draws entries uniformly over the whole model: the baseline of no knowledge."""

    def method(profile: Profile, fraction: float) -> Mask:
        sizes = {name: layer.fisher.size for name, layer in profile.layers.items()}
        return random_entries(sizes, entry_count(profile, fraction), seed)

    return method


def random_entries(sizes: Mapping[str, int], count: int, seed: int) -> Mask:
    """``count`` entries drawn evenly from matrices of so many entries each."""
    ends = np.cumsum(list(sizes.values()))
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(int(ends[-1]), count, replace=False, shuffle=False))
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return {
        name: part - (end - size)
        for (name, size), part, end in zip(sizes.items(), parts, ends, strict=True)
    }


def magnitude_mask(model: Any) -> MaskMethod:
    """Method that takes the largest absolute weights of ``model``, the one that was profiled."""

    def method(profile: Profile, fraction: float) -> Mask:
        if model is None:
            raise ModelError("the magnitude mask looks at weights: use it where a model is given")
        linears = dict(model.named_modules())
        for name, layer in profile.layers.items():
            if name not in linears or tuple(linears[name].weight.shape) != layer.fisher.shape:
                raise ModelError(
                    f"layer {name}: the weights do not match the profile; "
                    "profile the model that is exported"
                )
        scores = (
            (name, np.abs(linears[name].weight.detach().float().numpy()).reshape(-1))
            for name in profile.layers
        )
        return _top_of_all(scores, entry_count(profile, fraction))

    return method


def mask_method(name: str, *, seed: int = 0, model: Any = None) -> MaskMethod:
    """The method of that name, or ``package.module:function`` of the user.

    Args:
        seed: of ``random``.
        model: whose weights ``magnitude`` looks at; without one it fails when it is run.

    Raises:
        ModelError: no such method.
    """
    known: dict[str, MaskMethod] = {
        "compact": compact_top_k,
        "global": global_top_k,
        "per-layer": per_layer_top_k,
        "random": random_mask(seed),
        "magnitude": magnitude_mask(model),
    }
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ModelError(f"unknown mask {name!r}; take {', '.join(known)} or module:function")
    try:
        method = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"mask {name!r} cannot be imported: {error}") from error
    if not callable(method):
        raise ModelError(f"mask {name!r} is not a function")
    chosen: MaskMethod = method
    return chosen


def build_mask(
    profile: Profile, fraction: float = DEFAULT_FRACTION, method: MaskMethod | None = None
) -> Mask:
    """Runs ``method`` (by default ``DEFAULT_MASK``) and checks its result, which may come from a
    user's own function.

    Returns one entry for every layer of the profile in model order, empty where nothing was chosen.

    Raises:
        ModelError: naming the layer whose indices break the contract, or the fraction.
    """
    entry_count(profile, fraction)
    chosen = (method or mask_method(DEFAULT_MASK))(profile, fraction)
    unknown = set(chosen) - set(profile.layers)
    if unknown:
        raise ModelError(f"mask: layer {min(unknown)} is not in the profile")
    mask: Mask = {}
    for name, layer in profile.layers.items():
        indices = np.asarray(chosen.get(name, ()))
        if indices.size == 0:
            indices = np.zeros(0, np.int64)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise ModelError(f"mask: layer {name}: indices must be one row of integers")
        if np.any(np.diff(indices) <= 0):
            raise ModelError(f"mask: layer {name}: indices must ascend without repeats")
        if indices.size and (indices[0] < 0 or indices[-1] >= layer.fisher.size):
            raise ModelError(f"mask: layer {name}: an index is outside 0..{layer.fisher.size - 1}")
        mask[name] = indices.astype(np.int64, copy=False)
    if not any(indices.size for indices in mask.values()):
        raise ModelError("mask: no entry was chosen; there would be nothing to tune")
    return mask


def entry_count(profile: Profile, fraction: float) -> int:
    """Number of entries that ``fraction`` of the profiled weights stands for, at least one.

    Raises:
        ModelError: the fraction is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ModelError(
            f"mask fraction {fraction:g} must lie above 0 and not above 1 (0.001 means 0.1 %)"
        )
    return max(1, round(profile.entries * fraction))


def _top_of_all(scores: Iterable[tuple[str, npt.NDArray[np.floating]]], count: int) -> Mask:
    """The ``count`` largest of all layers in one pass, with O(count) memory and no full sort.

    A pool holds the best seen so far, in model order. Later layers contribute only what beats the
    worst of a full pool, which is little: one comparison per weight is nearly all the work.
    """
    names: list[str] = []
    pool = np.zeros(0, np.float64)
    layers = np.zeros(0, np.int64)
    indices = np.zeros(0, np.int64)
    for number, (name, values) in enumerate(scores):
        names.append(name)
        better = (
            np.flatnonzero(values > pool.min())
            if pool.size == count
            else np.arange(values.size, dtype=np.int64)
        )
        if better.size > count:
            better = better[_top(values[better], count)]
        pool = np.concatenate([pool, values[better].astype(np.float64)])
        layers = np.concatenate([layers, np.full(better.size, number, np.int64)])
        indices = np.concatenate([indices, better])
        if pool.size > count:
            kept = _top(pool, count)
            pool, layers, indices = pool[kept], layers[kept], indices[kept]
    starts = np.searchsorted(layers, np.arange(len(names) + 1))
    return {name: indices[starts[number] : starts[number + 1]] for number, name in enumerate(names)}


def _top(values: npt.NDArray[np.floating], count: int) -> Indices:
    """Ascending positions of the ``count`` largest values; ties go to the smaller position."""
    worst = np.partition(values, values.size - count)[values.size - count]
    above = values > worst
    ties = np.flatnonzero(values == worst)[: count - int(np.count_nonzero(above))]
    above[ties] = True
    return np.flatnonzero(above)
