"""Libraries that report on their users are told not to, before any of them is imported.

Every package of ``seedtune`` imports this one first. Child processes inherit the environment.
"""

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Environment variables. onnxruntime (since 1.32, on Linux too) writes an identifier of the device
into the user's cache and looks up a host of Microsoft's unless the first is set when it is
imported; its ``disable_telemetry_events`` comes too late. The hub's client names the versions of
other libraries in what it asks for; transformers has the hub convert weights that are no
safetensors; Flower counts its users. The last is what others agreed on."""


def switch_off() -> None:
    """Set ``OFF`` in this process, whatever was there."""
    os.environ.update(OFF)
