"""What the notebook does, without a page: this package and Modelyard's own modules don't know of each other."""
