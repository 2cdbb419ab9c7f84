"""What server and devices share. Import it before anything of Flower's."""

import json
from pathlib import Path
from typing import Any

from seedtune.runtime import Model, TuningError, open_model  # first: it switches telemetry off

from flwr.serverapp import (  # isort: skip
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)


def opened(config: Any) -> Model:
    """The bundle and task that a configuration names; the bundle's own task without one."""
    if not config.get("bundle"):
        raise TuningError("no bundle: give its absolute path (bundle=...)")
    task = config.get("task")
    spec = json.loads(Path(str(task)).read_text(encoding="utf-8")) if task else None
    return open_model(str(config["bundle"]), task=spec, on_long="truncate")


def guarantee(own: float, summed: float, releases: int, delta: float) -> str:
    """What the noise of so many releases guarantees, as a sentence.

    Args:
        own: a device's noise, in clips.
        summed: that of the sum over devices.
    """
    if not own:
        return "privacy: no guarantee: no noise was added"
    results, server = (_epsilon(noise, releases, delta) for noise in (summed, own))
    return (
        f"privacy at delta {delta:g}, for all rows of one device: epsilon {results:.3g} against "
        f"whoever sees the results, {server:.3g} against the server, which sees what each sends"
    )


def _epsilon(noise: float, releases: int, delta: float) -> float:
    """Every device takes part in each release, so that nothing is gained by sampling them."""
    config = PrivacyConfig(
        target_delta=delta,
        population_size=1,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    accountant = RdpAccountant(config)
    accountant.compose(GaussianPrivacyEvent(noise, 1, 1), releases)
    return float(accountant.get_privacy_spent().epsilon)
