"""What every Trellis service needs to be a good process: settings, TLS, logs, health, retry."""
