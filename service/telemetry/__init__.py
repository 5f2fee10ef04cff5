"""Spans by OpenTelemetry, and what goes with them over DB-GPT's wire."""
