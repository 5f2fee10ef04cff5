"""The model host: one process that holds the models of several."""
