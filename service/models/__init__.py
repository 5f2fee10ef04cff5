"""The catalogue of models, and their files: weights, their headers, and how they are pulled."""
