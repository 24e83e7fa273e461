"""The messages of the SPIFFE Workload API.

`workload_pb2.py` is generated from `workload.proto`; how is said there.
"""
