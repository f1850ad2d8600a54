"""Handwritten digits in the NumPyClient API: a Flower App for flwr 1.20 and later."""
