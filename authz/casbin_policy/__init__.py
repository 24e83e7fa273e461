"""`CasbinPolicy`: a Casbin model and its rows decide calls, run by pycasbin. Read top to bottom:

`documents` (the YAML) and `sources` (files and stores it names) -> `definition` (model and rows as text) ->
`matcher`, `patterns`, `roles`, `terms` (each checked, each pure) -> `compile` -> `engine` (pycasbin) ->
`policies` (what applies to a call, and the decision).
"""

from authz.casbin_policy.compile import compile_casbin
from authz.casbin_policy.documents import API_VERSION, KIND, CasbinPolicy
from authz.casbin_policy.policies import CasbinCode, CasbinDecision, CasbinPolicies, CompiledPolicy
from authz.casbin_policy.sources import AdapterFactory, Sources, load_sources

__all__ = [
    "API_VERSION",
    "KIND",
    "AdapterFactory",
    "CasbinCode",
    "CasbinDecision",
    "CasbinPolicies",
    "CasbinPolicy",
    "CompiledPolicy",
    "Sources",
    "compile_casbin",
    "load_sources",
]
