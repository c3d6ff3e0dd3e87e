"""Durable workflows: one function per operation, each reads like its runbook and survives the end of the process."""
