"""Many devices learn one thing: what each sends, and what a server makes of it.

Nothing here moves a byte: a question is a mapping of plain numbers, text and bytes, and so is its
answer; whoever carries them (``examples/fleet`` does by Flower) asks ``Fleet`` what to send and
hands it what came back. ::

    work = PooledHead(model)                      # or SharedSteps, or PrivateHead
    fleet = Fleet(identity(model), work)
    while not work.done:
        print(fleet.take(carry(fleet.ask(devices))))

and on each device ``Device(model, rows).answer(question)``.

What is sent is said in ``docs/fleet.md``: sums over a device's rows, never a row's own number.
"""

from .device import Device, Verdict, examples_of
from .heads import JudgedHead, PooledHead, PrivateHead
from .messages import Answer, Question, identity
from .rounds import Fleet, Round, Work
from .steps import SharedSteps

__all__ = [
    "Answer",
    "Device",
    "Fleet",
    "JudgedHead",
    "PooledHead",
    "PrivateHead",
    "Question",
    "Round",
    "SharedSteps",
    "Verdict",
    "Work",
    "examples_of",
    "identity",
]
