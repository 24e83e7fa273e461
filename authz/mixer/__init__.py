"""Mixer's check side (`config.istio.io/v1alpha2`): rules that deny, lists, header operations."""
