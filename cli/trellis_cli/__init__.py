"""The trellis command line."""
