"""The policy decision point: who is calling, and may they? `service.py` is where a call comes in."""
