"""The web pages: the cluster, its models, and who is signed in."""
