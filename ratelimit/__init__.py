"""Quotas: descriptors in, outcome out. Usable behind `RateLimitService` alone."""
