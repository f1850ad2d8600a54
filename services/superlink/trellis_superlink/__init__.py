"""The SuperLink."""
