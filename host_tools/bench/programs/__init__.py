"""Models and programs that are measured: of the quickstart's model, and of random weights."""
