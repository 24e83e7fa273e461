"""Where buckets live. `base.py` is the contract, `memory.py` the store of one process."""
