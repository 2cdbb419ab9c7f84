"""A run on the exported tiny model: rows whose answer follows from two words, and its world."""

import random

from seedtune.runtime.engines import open_engine
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner

ABOUT = ("rain", "a cat", "a town", "the sea", "a mat", "numbers", "good", "bad")
MANNERS = ("humour", "patience", "love", "rage", "care", "words")


def film_rows(count, seed=0):
    """What is said follows from two words."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        about, manner = rng.choice(ABOUT), rng.choice(MANNERS)
        good = (ABOUT.index(about) + MANNERS.index(manner)) % 2
        said = f" It was {'great' if good else 'terrible'}."
        found.append({"text": f"A film about {about}, {manner}.", "said": said})
    return found


class World:
    """A bundle, its engine, a task and examples, and how a run with them is set."""

    def __init__(self, bundle, spec, train, held_out, settings):
        self.bundle, self.engine, self.settings = bundle, open_engine(bundle, 1), settings
        self.start, self.task = Start.of(bundle), task_for(bundle, spec)
        self.train = encode_rows(self.task, train)
        self.held_out = encode_rows(self.task, held_out)

    @property
    def text(self):
        return self.start.kinds["text-adapter"].head

    def tuner(self, folder, **changes):
        given = {
            "task": self.task,
            "train": self.train,
            "eval_examples": self.held_out,
            "settings": self.settings,
        }
        return Tuner(self.engine, self.start, folder=folder, **{**given, **changes})

    def run(self, folder, **settings):
        """To its end: history and values."""
        with self.tuner(folder, settings={**self.settings, **settings}) as live:
            list(live)
            return live.history, live.values

    def loss(self, values):
        return evaluate(self.engine, self.task, self.held_out, values, self.bundle.bounds).loss

    def look(self, count=8):
        bounds, kinds = self.bundle.bounds, self.start.kinds
        return Look(self.engine, self.task, bounds, self.train[:count], kinds)
