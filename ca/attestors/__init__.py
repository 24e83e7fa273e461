"""How callers prove who they are: evidence in, selectors or a refusal out; one file per kind of evidence.

For a process on a Unix socket the kernel vouches: `ca/attestation.py`.
"""
