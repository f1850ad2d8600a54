"""A Flower App whose sites need XGBoost, which its server does not have."""
