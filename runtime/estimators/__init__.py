"""Zeroth-order gradient estimators, one file each."""
