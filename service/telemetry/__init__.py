"""Spans by OpenTelemetry, and their ids in DB-GPT's headers and bodies."""
