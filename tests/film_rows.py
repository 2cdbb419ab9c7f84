"""Rows whose answer follows from two words."""

import random

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
