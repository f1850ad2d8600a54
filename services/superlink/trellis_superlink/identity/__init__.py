"""Who an account is and what it may do: an OpenID Connect provider's tokens, roles, the audit log."""
