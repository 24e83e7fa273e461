"""The rate-limit messages, read and written with two fields that the published Python messages lack.

`rls_pb2.py` is generated from `rls.proto`; how is said there.
"""
