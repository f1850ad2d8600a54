"""Flower messages, objects, FABs and signatures as they are on the wire."""
