"""Access control: tokens with scopes, and networks whose addresses need no token."""
