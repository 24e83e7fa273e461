"""Builders for Mixer's quotas."""

from __future__ import annotations

ALLOWED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
---
"""


def quotas(
    limit: str = "maxAmount: 5, validDuration: 60s",
    *,
    kind: str = "memquota",
    dimensions: str = '{source: source.principal | "nobody"}',
    rules: str = "[{quotas: [{quota: RequestCount, charge: 1}]}]",
    match: str = "",
    services: str = "[{name: products}]",
    extra: str = "",
) -> str:
    """Return documents that charge calls to `products` in namespace `default`."""
    return f"""
apiVersion: config.istio.io/v1alpha2
kind: quota
metadata: {{name: requestcount, namespace: istio-system}}
spec: {{dimensions: {dimensions}}}
---
apiVersion: config.istio.io/v1alpha2
kind: {kind}
metadata: {{name: handler, namespace: istio-system}}
spec: {{quotas: [{{name: requestcount.quota.istio-system, {limit}}}]{extra}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: quota, namespace: istio-system}}
spec:
  match: {match!r}
  actions: [{{handler: handler.{kind}, instances: [requestcount.quota]}}]
---
apiVersion: config.istio.io/v1alpha2
kind: QuotaSpec
metadata: {{name: requests, namespace: default}}
spec: {{rules: {rules}}}
---
apiVersion: config.istio.io/v1alpha2
kind: QuotaSpecBinding
metadata: {{name: requests, namespace: default}}
spec: {{services: {services}, quotaSpecs: [{{name: requests}}]}}
---
"""
