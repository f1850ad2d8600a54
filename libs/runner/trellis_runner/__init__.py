"""Hosts one Flower App in a guest process."""
