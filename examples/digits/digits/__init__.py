"""Handwritten digits: a Flower App for flwr 1.21 and later."""
