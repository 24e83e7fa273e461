"""Policies for many replicas: published once, signed, followed by all.

Read in this order: `bundle` (files as one piece of bytes), `keys` and `announcement` (who said that it is the
current one), `channel` (where both are in Redis), `publisher` (writes there), `follower` (reads there, inside
a replica), `cache` (what a replica remembers on disk). The first three are pure. `garrison.process` has the
commands and the settings.
"""
