"""Asks every site for an answer."""
