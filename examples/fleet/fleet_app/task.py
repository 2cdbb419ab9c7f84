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


def guarantee(noise: float, releases: int, delta: float) -> str:
    """What the noise of so many releases guarantees, as a sentence. Every device takes part in
    each, so that nothing is gained by sampling them."""
    if not noise:
        return "privacy: no guarantee: no noise was added"
    config = PrivacyConfig(
        target_delta=delta,
        population_size=1,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    accountant = RdpAccountant(config)
    accountant.compose(GaussianPrivacyEvent(noise, 1, 1), releases)
    epsilon = accountant.get_privacy_spent().epsilon
    return (
        f"privacy: epsilon {epsilon:.3g} at delta {delta:g} for all rows of one device, against "
        "whoever sees the results; the server sees what each sends, with its share of the noise"
    )
