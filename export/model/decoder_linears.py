"""The matrices that are profiled, masked and quantised to int4."""

from seedtune.runtime.errors import ModelError
from torch import nn


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` of the decoder by name, in model order, without the output head.

    Raises:
        ModelError: the model has none.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not found:
        raise ModelError(f"{type(model).__name__} has no nn.Linear layer to profile")
    return found
