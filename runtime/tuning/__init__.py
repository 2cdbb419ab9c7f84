"""The loop: a tuner, when it stops, and how it chooses its perturbation."""
