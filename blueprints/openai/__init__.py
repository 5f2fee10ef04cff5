"""OpenAI's API over the models of any manager: the calls, their answers, and errors in the shape that clients read."""
