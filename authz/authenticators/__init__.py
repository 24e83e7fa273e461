"""Who knows which credentials are good: one module for each kind, all behind `Authenticator`.

An authenticator answers at once from memory (`known`), or has to be asked (`ask`). The protocol, and what is
made of the answer, are in `authz.authn.credentials`.
"""
