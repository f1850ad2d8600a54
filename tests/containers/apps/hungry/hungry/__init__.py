"""A Flower App that takes more memory than there is, in one round of three."""
