"""The loop: a tuner, its state, its guards, and how it chooses step size and perturbation."""
