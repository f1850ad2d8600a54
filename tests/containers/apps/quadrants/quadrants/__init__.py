"""A Flower App whose sites need JAX, which its server does not have."""
