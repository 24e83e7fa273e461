"""Commands for people who write policy, one module each; `options` and `requests` are what they share."""
