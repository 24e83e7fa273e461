"""Who is calling: one module per proof; each says nobody, this principal, or a bad credential."""
