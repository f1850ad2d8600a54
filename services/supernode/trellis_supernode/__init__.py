"""The SuperNode."""
