"""The HTTP side: blueprints over a runtime and its manager."""
