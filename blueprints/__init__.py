"""The HTTP API as Flask blueprints."""
