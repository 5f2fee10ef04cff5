"""The version of modelyard."""

__version__ = "0.1.0"
