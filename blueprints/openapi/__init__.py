"""The OpenAPI document of a service: made from the schemas that check requests, and from the routes that are there."""
