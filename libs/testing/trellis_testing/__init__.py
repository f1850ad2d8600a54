"""Starts Flower federations for tests."""
