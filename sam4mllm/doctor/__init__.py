"""Checks that every kind of model runs here, on small random models of the real classes."""
