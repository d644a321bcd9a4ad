"""Quotas: what keys and tenants may use at most, a minute and at the same time."""
