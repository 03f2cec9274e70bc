"""The stored model, answering."""
