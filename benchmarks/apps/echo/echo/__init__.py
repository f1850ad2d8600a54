"""The benchmarks' Flower App."""
