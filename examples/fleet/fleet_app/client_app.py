"""A device: answers what it is asked, and keeps what helps it."""

from .task import opened  # isort: skip  (before Flower)

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from seedtune.runtime.fleet import Device

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a question from this device's rows."""
    config, state = context.node_config, context.state
    floors = ("least-rows", "least-devices", "least-noise")
    known = state["seedtune"]["states"] if "seedtune" in state else None
    with opened(config) as model:
        device = Device(
            model,
            str(config["train"]),
            str(config["held-out"]) if "held-out" in config else None,
            **{name.replace("-", "_"): config[name] for name in floors if name in config},
            states=known or None,
        )
        try:
            answer = device.answer(dict(message.content["question"]))
        finally:
            if device.verdict is not None and "output" in config:
                model.values = device.verdict.values
                model.save(str(config["output"]))
                print(f"ships: {device.verdict.ships}; {device.verdict.accuracy}")
    # Hidden states stay with the node: a later round computes none.
    state["seedtune"] = ConfigRecord({"states": device.states})
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
