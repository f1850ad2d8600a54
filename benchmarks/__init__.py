"""The same work on Trellis and on stock Flower, in one run: `python -m benchmarks`."""
