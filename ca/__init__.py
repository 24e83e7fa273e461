"""Identities: keys, issuer, and the APIs that hand SVIDs out."""
