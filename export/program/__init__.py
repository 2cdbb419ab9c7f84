"""The eager module whose export is the program."""
