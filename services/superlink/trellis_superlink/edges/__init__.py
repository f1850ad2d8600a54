"""The SuperLink's surfaces: they decode, establish who asks, call the core, encode. No rule of the network is here."""
