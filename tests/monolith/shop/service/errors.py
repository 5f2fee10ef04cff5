"""A module of a name that Modelyard has as well."""

OWNER = "shop"
