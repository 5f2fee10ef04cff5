"""DB-GPT's contract as bytes: chunks, messages, errors."""
