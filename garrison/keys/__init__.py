"""The public keys of token issuers: parsed, fetched, kept fresh; shared by who verifies tokens."""
