"""nano's training pipeline: data, encode, align, instruct, evaluate, export (see README.md)."""
