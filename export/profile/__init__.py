"""Which weights are sensitive: empirical Fisher on generic text, and masks chosen from it."""
