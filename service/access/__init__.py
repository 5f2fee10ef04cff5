"""Who may do what: tokens, and networks whose addresses need none."""
