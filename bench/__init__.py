"""The figures of this project beside its peer's, measured in one run: ``python -m bench`` from the checkout's root."""
