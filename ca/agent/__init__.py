"""`ca agent`: SDS and the Workload API on a node, from a CA on another machine."""
