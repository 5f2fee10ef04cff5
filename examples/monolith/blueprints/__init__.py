"""The pages: this package and Modelyard's own blueprints don't know of each other."""
